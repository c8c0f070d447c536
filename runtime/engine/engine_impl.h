// The engine behind engine.h. Its own header so that tests can give it a pipeline of their own.
#ifndef DENOISED_RUNTIME_ENGINE_ENGINE_IMPL_H_
#define DENOISED_RUNTIME_ENGINE_ENGINE_IMPL_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/attention/shadows.h"
#include "runtime/audit.h"
#include "runtime/engine.h"
#include "runtime/engine/company.h"
#include "runtime/engine/cost_file.h"
#include "runtime/engine/cost_model.h"
#include "runtime/engine/lease_keeping.h"
#include "runtime/engine/memory_admission.h"
#include "runtime/engine/models.h"
#include "runtime/engine/session_work.h"
#include "runtime/engine/tuning.h"
#include "runtime/engine/watchdog.h"
#include "runtime/engine/work.h"
#include "runtime/engine/work_table.h"
#include "runtime/task_thread.h"
#include "runtime/ticker.h"

namespace denoised {

class EngineImpl : public Engine {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;

  // Deadlines and the order of work are looked up on `clock`, and units are timed on `unit_clock`.
  // Takes up the leases of an earlier process and the jobs that it has not ended, and starts the
  // threads.
  EngineImpl(const EngineOptions& options, std::unique_ptr<SelectionPolicy> policy,
             LoadedRepository models, std::unique_ptr<JobStore> store, Observer* observer,
             Logger* logger, Clock clock = std::chrono::steady_clock::now,
             Clock unit_clock = std::chrono::steady_clock::now);
  ~EngineImpl() override;

  using Engine::Submit;
  void Submit(GenerationRequest request, std::function<void(SubmitResult)> done) override;
  CancelResult Cancel(const std::string& job_id) override;
  std::optional<Error> Suspend(const std::string& job_id) override;
  std::optional<Error> Resume(const std::string& job_id) override;
  std::optional<Error> Delete(const std::string& job_id) override;
  JobStore& jobs() override { return *store_; }
  void AddPlace(JobSnapshot* job) const override;
  void Denoise(DenoiseRequest request, std::shared_ptr<CancelToken> cancel,
               std::function<void(DenoiseOutcome)> done) override;
  void OpenSession(std::shared_ptr<SessionOwner> owner, SessionRequest request,
                   SessionDone done) override;
  void AskSession(const std::shared_ptr<SessionOwner>& owner, const std::string& id,
                  SessionVerb verb, SessionDone done) override;
  void LeaveSessions(const std::shared_ptr<SessionOwner>& owner) override;
  int64_t open_sessions() const override;
  std::vector<ModelInfo> ListModels() const override { return models_.List(); }
  std::vector<FailedModel> ListFailedModels() const override { return models_.ListFailed(); }
  // model_changes.cc.
  void LoadModel(ModelChange change, LoadDone done) override;
  void UnloadModel(ModelChange change, UnloadDone done) override;
  SelectionPolicy& policy() override { return *policy_; }
  Audit& audit() override { return audit_; }
  Tuner& tuner() override { return tuning_; }
  std::vector<BackendInfo> ListBackends() const override { return models_.ListBackends(); }
  // explain.cc.
  std::optional<Error> CheckForce(const LeaseRequest& request) const override;
  std::vector<Explanation> Explain(const ExplainQuery& query) const override;
  std::vector<BreakerInfo> Breakers() const override { return models_.Breakers(); }
  void Drill(const DrillRequest& request) override;
  ShadowInfo Shadow(const ShadowRequest& request) override;
  std::vector<ShadowInfo> ListShadows() const override { return shadows_.List(); }
  ShadowInfo StopShadow(const std::string& id) override;
  std::optional<std::pair<int64_t, double>> Judged(const std::string& lease_id) const override {
    return shadows_.Judged(lease_id);
  }
  int64_t queue_depth() const override;
  int64_t running_jobs() const override;
  MemoryPressure Pressure() const override;
  std::optional<std::string> Hung() const override;
  void Drain() override;
  void BeginNoMore() override;
  bool leaves_waiting() const override;
  bool draining() const override;
  bool WaitIdle(std::chrono::milliseconds timeout) override;
  void Stop() override;
  void Shutdown() override;
  // Null where nothing is watched; for tests, which tick it themselves.
  Watchdog* watchdog() { return watchdog_.get(); }

 private:
  void Guard(const Pipeline& pipeline);

  // submits.cc: the callers' side. Any thread.
  std::optional<Error> TakePlace(const JobPtr& job);
  SubmitResult Accepted(const JobPtr& job, JobStore::Added outcome);
  void Answer(const JobPtr& job, JobStore::Added outcome,
              const std::function<void(SubmitResult)>& done);
  int64_t Waiting() const;  // under mutex_, as the next four
  bool Full() const;
  Error QueueFull();
  void RequireCallPlace();  // throws where there is none
  void Enter(const JobPtr& job);
  void Readmit(AcceptedJob accepted);

  // stopping.cc: likewise.
  void Ask(const std::string& job_id, std::optional<JobState> state);
  std::optional<Error> SuspendNow(const JobPtr& job);
  std::optional<Error> SuspendLater(const JobPtr& job);
  void RequirePlaceAside() const;  // under mutex_; throws where there is none
  void ExpireWaiting();
  void WatchDeadlines();  // a thread of its own
  bool IsKept(const EngineWork& work) const;
  void Close(const WorkPtr& work);  // under mutex_
  void EndWaiting(const WorkPtr& work, const Error& error);
  bool GoesOnLater(const JobWork& job) const;
  bool Late(const EngineWork& work) const;
  std::optional<Error> WhyStop(const EngineWork& work) const;
  std::optional<Error> WhyStopAll(const std::vector<WorkPtr>& works) const;  // engine thread

  // model_changes.cc: of operators, one at a time. The changes' thread, or as the comment says.
  void PostChange(const std::string& name, std::function<void()> change);  // any thread; throws
  void EndChange();
  ModelLoaded Load(const std::string& name);
  void RequireMemoryToLoad(const std::string& name, int64_t bytes);
  int64_t Serve(std::unique_ptr<Pipeline> pipeline, std::unique_ptr<PassingBytes> passing);
  Error NotLoaded(const ModelChange& change, const Error& error);
  void ForgetFailed(const std::string& name);
  void AuditLoad(const ModelChange& change, const std::string& before, const std::string& after);
  ModelUnloaded Unload(const ModelChange& change);
  void RequireUnused(const std::string& model) const;  // under mutex_, as the next
  ModelUnloaded TakeFrom(const std::string& model, std::vector<WorkPtr>* waiting, Going* going);
  void AwaitGone(const Going& models);

  // following.cc: jobs that have not begun go over to the models that serve by now. Engine thread.
  void NoteStale(const EngineWork& work);  // any thread, under mutex_
  void FollowModels();
  void Follow(const JobPtr& job);
  void EndUnserved(const JobPtr& job, const Error& error);

  // admission.cc. Any thread. What requires throws RESOURCE_EXHAUSTED, reason MEMORY, or
  // FAILED_PRECONDITION, reason DEADLINE_UNREACHABLE.
  enum class Attention : uint8_t { kLeftOut, kIncluded };
  JobPtr Admit(GenerationRequest request);
  void FillIn(JobWork* job) const;
  void Estimate(JobWork* job) const;
  void FillIn(CallWork* call) const;
  void FillIn(SessionWork* session) const;
  void CheckAttention(TrajectoryWork* work) const;
  void RequireTime(const JobWork& job);  // under mutex_
  WorkEstimate EstimateOf(const TrajectoryWork& work, Attention attention, int64_t beside) const;
  void RequireMemoryLater(const JobWork& job, const WorkEstimate& estimate) const;
  void RequireMemoryNow(TrajectoryWork* work);
  void RequireMemory(const CallWork& call) const;
  void RequireMemory(const SessionWork& session, const WorkEstimate& estimate) const;
  int64_t HeldByAll() const;
  int64_t BytesAtHand() const;
  void RequireBesideResults(const std::string& what, const WorkEstimate& estimate,
                            int64_t held) const;
  int64_t ResultsThatStay() const;
  int64_t HeldLater() const;  // under mutex_, as the next three
  int64_t HeldBesideResults() const;
  bool FitsBesideResidents(const EngineWork& work) const;
  int64_t RowsThatFit(const EngineWork& lead) const;

  // pressure.cc: memory that no estimate accounts for.
  std::optional<MemoryReading> ReadMemory() const;  // any thread
  void RequireNoPressure();  // under mutex_; throws where new work is refused
  void LookAtMemory();       // of the ticker, as the next two
  bool IsTimeToTrim(const MemoryPressure& now);
  void ForgetForOthers(const MemoryPressure& pressure);

  // predictions.cc. Of work that has begun: engine thread.
  UnitKey KeyOf(const EngineWork& work, const Unit& unit) const;
  // Of what is left of it: units of these kinds; all.
  double SecondsOf(const EngineWork& work, std::initializer_list<UnitKind> kinds) const;
  bool Known(const EngineWork& work) const;
  // All of it; nothing where no time of such a unit was ever measured.
  std::optional<double> KnownSecondsLeft(const EngineWork& work) const;
  WorkProgress ProgressOf(const EngineWork& work) const;
  Work Queued(const EngineWork& work) const;
  // Predicted, of a place for a job or a call; under mutex_.
  std::chrono::milliseconds TimeToPlace();
  double SecondsToFirstEnd() const;
  double LongestUnit() const;
  std::chrono::milliseconds TimeToCallPlace() const;

  // loop.cc. Engine thread.
  void Loop();
  std::optional<std::chrono::steady_clock::time_point> LooksAgainAt() const;  // under mutex_
  void EndAsked();
  bool MayBegin() const;  // under mutex_, as all to NotePreemptions but for NextTurn
  int64_t MayBegin(int64_t most_at_once) const;
  void MarkBegun(const WorkPtr& work);
  WorkPtr NextLead();
  void AwaitCompany(std::unique_lock<std::mutex>* lock);
  std::vector<WorkPtr> NextTurn();
  void AddCompanions(std::vector<WorkPtr>* turn);
  void NotePreemptions(const std::vector<WorkPtr>& turn);  // under mutex_
  void RunTurn(const std::vector<WorkPtr>& turn);
  std::vector<WorkPtr> Begin(const std::vector<WorkPtr>& turn);
  bool WaitsForRoom(const WorkPtr& work, const Error& error, bool beside_models);
  bool WaitsForModels(const EngineWork& work);
  void BeginRun(const WorkPtr& work);  // of what is ready and started
  void BeginCall(CallWork* call);
  double UnitSecondsSince(std::chrono::steady_clock::time_point start);
  void RunAlone(const WorkPtr& work);
  void RunStep(const std::vector<WorkPtr>& works);
  Company::Callers CallersOf(const std::vector<WorkPtr>& works, const UnitKey& key,
                             int64_t rows) const;
  std::optional<double> ShareOf(const std::vector<WorkPtr>& works,
                                const std::vector<Unit>& units) const;
  void AfterNobody(const std::vector<WorkPtr>& works, const Error& error);
  void AfterUnit(const WorkPtr& work, const Unit& unit, const UnitTime& time,
                 const std::optional<Error>& error);

  // last_resort.cc: what the process must end for. Engine thread, or as the comment says.
  void WatchUnits();  // before the thread
  Watchdog::Scope Watched(const std::vector<WorkPtr>& works, const std::vector<Unit>& units);
  WatchedUnit UnitOf(const std::vector<WorkPtr>& works, const std::vector<Unit>& units) const;
  Watchdog::Scope WatchedBeside(std::string kind);
  void TellHung(const WatchedUnit& unit, double seconds);  // any thread, as the next two
  void TellRecovered(const WatchedUnit& unit, double seconds);
  void GiveUpOn(const WatchedUnit& unit, double seconds);
  bool LosesDevice(const std::vector<WorkPtr>& works,
                   const std::vector<std::optional<Error>>& errors);
  void Leave(const WorkPtr& work, const Error& error);
  bool EndsFor(const std::optional<Error>& error, const std::string& model,
               const std::vector<std::string>& jobs);  // any thread, as the next
  // As Caught, of what else touches a device: of this work, or (null) of nobody's.
  std::optional<Error> OnDevice(const EngineWork* work, const std::function<void()>& what);

  // redo.cc: units that failed and may go well with another choice of backends. Engine thread.
  bool TriesAgain(const WorkPtr& work, const Error& error);
  bool TryWithoutBroken(const WorkPtr& work, const Error& error);
  bool TryWithoutLeases(const WorkPtr& work, const Error& error, LeaseEnd cause);
  bool TryWithout(const std::vector<WorkPtr>& works, const CallFailure& failure);
  Error WhyFailed(const EngineWork& work, const Error& error) const;
  void GiveUp(EngineWork* work) const;
  void WentWell(EngineWork* work, const Unit& unit);
  void RollBack(EngineWork* work, const Redo::Suspect& suspect, const std::string& again);
  void TellBreakers(const EngineWork& work);

  // shadowing.cc: comparisons of backends beside the work. Engine thread, or as the comment says.
  std::optional<Error> WhyNotJudged(const LeaseRequest& request) const;  // any thread
  void EndUnjudged();                                                    // before the thread
  int64_t HeldForShadows() const;                                        // under mutex_
  void RunBeside(bool idle);
  void RunShadows(bool idle);
  void RunIdleShadow();
  std::optional<std::chrono::steady_clock::time_point> SomebodySince();

  void Refresh(const EngineWork& work);  // under mutex_
  void PutBack(const WorkPtr& work);
  void End(const WorkPtr& work, const std::optional<Error>& error);
  void ReturnUnusedMemory() const;  // also encoder thread
  void Wake();                      // any thread

  // jobs.cc: what a job's store and watchers see. Engine thread, or as the comment says.
  void HoldOrder(TrajectoryWork* work);
  void MakeReady(JobWork* job);  // throws where there is no room for it now
  std::map<WorkPtr, std::optional<Error>> StartAll(const std::vector<JobPtr>& jobs);
  void BeginJob(JobWork* job);
  std::unique_ptr<GenerationRun> NewRun(JobWork* job, RunRequest request);
  void EnterStage(JobWork* job, JobStage stage);
  void LeaveStage(JobWork* job);  // also encoder thread
  void TellTimeLeft(const JobWork& job);
  void UnitDone(const JobPtr& job, UnitKind kind, double seconds);
  Receipt ReceiptOf(const JobWork& job) const;  // also encoder thread
  void FinishRun(const JobPtr& job);
  void EncodeAndStore(const JobPtr& job, const DecodedVideo& video,
                      const HostTensor& latents);  // encoder thread
  void CloseToCancels(JobWork* job);               // encoder thread
  void EndJob(const JobPtr& job, const std::optional<Error>& error, Receipt receipt);  // any
  void EndCall(const CallPtr& call, const std::optional<Error>& error);                // any
  void LogEnd(const JobWork& job, JobState outcome, const std::optional<Error>& error);

  // places.cc: where jobs stand that wait.
  std::optional<JobPlace> PlaceOf(const JobWork& job) const;  // under mutex_
  bool HasMoved(const std::string& job_id);                   // any thread
  void TellPlaces();                                          // of the ticker

  // keeping.cc: jobs that are put aside, put away, or kept for the case of a crash. Engine thread.
  std::string IdentityOf(const JobWork& job) const;
  Checkpoint CheckpointOf(const JobWork& job) const;
  void NoteBegunAgain(JobWork* job, int64_t step, const std::string& why);
  Checkpoint GoOnFrom(JobWork* job);
  void KeepReached(JobWork* job);
  void LetGo(JobWork* job);
  bool BeginsAnew(const WorkPtr& work, const Error& error);
  void PutAside(const JobPtr& job);
  bool MayStay(const EngineWork& work) const;  // under mutex_, as the next
  std::vector<JobPtr> MovableBut(const std::vector<WorkPtr>& turn) const;
  void KeepResidentsWithin(const std::vector<WorkPtr>& turn);
  bool PutAway(const JobPtr& job);
  void InterruptAll(const std::vector<std::string>& ids);  // any thread
  void TellSuspended(const std::string& id);               // any thread
  void Park(const JobPtr& job);                            // also encoder thread
  bool CheckpointIsDue(const JobWork& job) const;
  void MaybeCheckpoint(JobWork* job);

  // session_requests.cc. Any thread.
  SessionPtr Admit(SessionRequest request) const;
  void EnterSession(const SessionPtr& session);  // under mutex_; throws where there are too many

  // sessions.cc. Engine thread.
  void ServeSessions();
  void Serve(const SessionPtr& session);
  void CloseUnloaded(const SessionPtr& session);
  void Open(const SessionPtr& session);
  void BeginSession(SessionWork* session);
  void Answer(SessionWork* session, const SessionDone& done, SessionReply reply);
  void Do(SessionWork* session, const SessionVerb& verb, SessionReply* reply);
  void Write(SessionWork* session, const SessionWrite& write);
  void Set(SessionWork* session, const SessionSet& set);
  std::string Fork(const SessionWork& session);
  void BeginSteps(const SessionPtr& session, SessionWork::Asked asked);
  void SessionUnitDone(const SessionPtr& session, const Unit& unit, const UnitTime& time);
  void StepsEnded(const SessionPtr& session, const std::optional<Error>& error);
  Receipt ReceiptOf(const SessionWork& session) const;
  void CloseSession(const SessionPtr& session, const Error& why);
  std::optional<Error> WhyEnd(const std::vector<SessionPtr>& sessions) const;
  void EndOwners();

  // previews.cc. Engine thread, or as the comment says.
  bool LearnColours(const std::vector<WorkPtr>& works);
  bool PreviewIsDue(const JobWork& job) const;
  void MaybePreview(const JobPtr& job);
  void ShowPreview(const JobPtr& job, const LatentColours& colours, int64_t step,
                   const HostTensor& latents);  // encoder thread

  const EngineOptions options_;
  const std::unique_ptr<SelectionPolicy> policy_;
  const std::unique_ptr<ModelSource> source_;
  Models models_;
  const std::unique_ptr<JobStore> store_;
  Observer* const observer_;
  Logger* const logger_;
  const Clock clock_, unit_clock_;
  Audit audit_;
  LeaseKeeping lease_keeping_;  // before any work begins
  Drills drills_;
  Shadows shadows_;
  const MemoryAdmission memory_;
  mutable RecentEstimates estimates_;  // by itself thread-safe
  CostModel cost_;                     // by itself thread-safe
  CostFile cost_file_;                 // likewise; before any work is predicted
  std::atomic<bool> ending_ = false;   // all work ends, or is put away for the next start
  // Of models that had to make previews; engine thread.
  std::map<std::weak_ptr<Pipeline>, Palette, std::owner_less<>> colours_;

  std::mutex suspend_mutex_;  // one suspension or resumption at a time; before mutex_
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_, idle_;
  std::condition_variable deadlines_;  // of WatchDeadlines: there is one more
  WorkTable table_;
  MemoryLadder ladder_;
  std::vector<WorkId> asked_;                            // begun, and somebody wants them to stop
  mutable uint64_t budgets_seen_ = UINT64_MAX;           // the policy's version at which
  mutable bool any_budget_ = false;                      // a live lease had one, or not
  bool session_news_ = false;                            // a session has something to do, or to end
  std::chrono::steady_clock::time_point sessions_seen_;  // when they were last looked through
  std::map<const JobWork*, Work> entering_;              // jobs on their way to the disk
  int64_t unanswered_ = 0;                      // submits that the store has not given back
  std::atomic<bool> draining_ = false;          // no new work
  std::string changing_;                        // model that is loaded or unloaded
  bool follows_ = false, away_follow_ = false;  // jobs, and some put away, have models that left
  bool begins_no_more_ = false;                 // what waits stays in the store
  bool stopping_ = false;                       // the thread ends
  std::chrono::steady_clock::time_point no_begin_until_;  // no room: in memory, on the disk
  std::atomic<bool> device_lost_ = false;                 // nothing more is done
  bool takes_companions_ = true;  // that have not begun: not while somebody large waits for room
  std::vector<WorkId> last_turn_;
  Company company_;  // of calls
  std::mutex join_mutex_;
  TaskThread encoder_;  // writes files: x264, SHA-256 and disks hold no step up
  TaskThread changes_;  // of models
  Tuning tuning_;
  std::string places_told_up_to_;  // the last job of the round of tellings under way
  uint64_t order_told_ = 0;        // the queue's changes() at that round's beginning
  std::unique_ptr<Watchdog> watchdog_;
  TaskThread watchman_;            // tells what the watchdog found; its ticks wait for nothing
  std::unique_ptr<Ticker> ticks_;  // the watchdog's
  std::thread thread_, deadlines_thread_;  // start when everything else is there
  int looks_since_trim_ = 0;               // at memory; the ticker's
  // So do these, and they end first: one tells watchers, the other looks at memory.
  std::optional<Ticker> places_, memory_looks_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_ENGINE_IMPL_H_
