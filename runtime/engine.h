// The engine: one thread that owns a device, its models and its random numbers. Torch-free face.
//
// Two crossings only: work in, the job store (and the Denoise callback) out. The thread runs units:
// a prompt, one denoising step of all that can share it, a chunk of frames. Between two of them it
// looks at arrivals, forces, cancels, deadlines and the order of the work, so that nobody waits
// longer than one unit for a turn; at cancels, deadlines and its own end also inside a unit, at the
// stop points of models, backends and encoders (backends/stop_point.h). Files are written beside
// it.
#ifndef DENOISED_RUNTIME_ENGINE_H_
#define DENOISED_RUNTIME_ENGINE_H_

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "backends/selector.h"
#include "runtime/attention_guard.h"
#include "runtime/explanation.h"
#include "runtime/job.h"
#include "runtime/job_store.h"
#include "runtime/log.h"
#include "runtime/memory_pressure.h"
#include "runtime/model_info.h"
#include "runtime/numerics.h"
#include "runtime/observer.h"
#include "runtime/selection_policy.h"
#include "runtime/session.h"
#include "runtime/shadow.h"
#include "runtime/tuner.h"
#include "runtime/waited.h"

namespace denoised {

class Audit;

struct EngineOptions {
  std::string model_repository = "model_repository";
  std::string device = "auto";     // auto | cpu | cuda:N
  std::string dtype = "auto";      // auto | float32 | bfloat16: of the transformer and text encoder
  std::string vae_dtype = "auto";  // the same names: of the decoder
  // "auto", "always" or "never": whether the text encoder's weights stay in memory between two
  // prompts. auto is as long as jobs fit beside them.
  std::string keep_text_encoder = "auto";
  std::string variant;  // of the weight files ("fp16"); "" = the plain ones, else the only one
  bool strict_repository = false;  // one folder that cannot be loaded fails Create
  // Where jobs, results and checkpoints outlive the process, with digests of files and the times of
  // units; "" = nothing does.
  std::string state_dir;
  std::optional<AttnBackend> environment_backend;  // FASTVIDEO_ATTENTION_BACKEND
  // The order of work: by deadlines, priorities and fair shares, or of arrival, one after the
  // other.
  enum class Policy : uint8_t { kDeadline, kFifo };
  Policy policy = Policy::kDeadline;
  bool batching = true;          // steps that can share a forward do
  int64_t max_batch_rows = 16;   // of a forward
  int64_t max_running_jobs = 0;  // that have begun and not ended; 0 = as many as memory holds
  // What jobs between their steps may keep in memory; beyond it those whose turn is furthest away
  // are in their checkpoints alone. 0 = all that fits; without state_dir nothing else.
  int64_t max_resident_bytes = 0;
  // Steps between two checkpoints of a job; 0 = none, -1 = as often as costs next to nothing.
  int64_t checkpoint_every = -1;
  int64_t max_queued_jobs = 64;
  int64_t max_queued_denoise_calls = 256;
  int64_t max_sessions = 256;
  // After which time without a request the sessions of an owner end; 0 = never.
  std::chrono::milliseconds session_idle = std::chrono::minutes(10);
  // Ended jobs to remember, with results and without each. 0 = 256, or with state_dir all that
  // ended within keep_results, as far as some of the memory holds them.
  int64_t max_finished_jobs = 0;
  int64_t max_artifact_bytes = int64_t{1} << 30;
  std::chrono::seconds keep_results = std::chrono::hours(7 * 24);  // in state_dir
  // What the process may take: "auto", "none" or a size such as "8GiB" (memory_budget.h). Work that
  // would not fit is refused.
  std::string max_memory = "auto";
  // What the process holds that the kernel cannot take back; unset: as the kernel says. For tests.
  std::function<int64_t()> unreclaimable_bytes;
  int threads = 0;                // intra-op threads; 0 = one a physical core
  bool admit_unmeasured = false;  // kernels that no device has run yet may serve
  bool enable_drills = false;     // Drill may be asked for
  // What comparisons of backends (Shadow, budgets of leases) may hold work up by: a share of the
  // device's time; 0 = nothing is compared.
  double shadow_budget = 0.02;
  // Of jobs that ask for none. Unset: what a model's denoised.json says, else packed.
  std::optional<LinearNumerics> linear;
  // Automatic selection may take any backend that was measured at most so far from the reference
  // (relative L2), beside those that are automatic anyway. Unset: those alone.
  std::optional<double> auto_error;
  // Whether kinds of attention calls that jobs make are measured where there is nothing else to do.
  bool tune_when_idle = false;
  // A unit that takes ten times as long as it should, and so long at least, hangs; 0 = none does.
  std::chrono::milliseconds hung_after = std::chrono::seconds(60);
  // Ends the process at once, for a supervisor to start it anew, with one of the codes below. Any
  // thread. Unset: nobody would, so that nothing is watched, and what loses the device fails.
  std::function<void(int code)> end_process;
  // Called by Create once everything is loaded and nothing has begun, with what notes for the next
  // start that the process was asked to stop (JobStore::NoteStop), as long as the engine lives.
  std::function<void(std::function<void()> note_stop)> before_work;
};

// A process ended for the next one to go on: CUDA can do nothing more in it (reason DEVICE_LOST),
// or a unit hung and did not end.
inline constexpr int kExitDeviceLost = 70, kExitHung = 71;

// A backend as ListBackends shows it, for the model's self-attention at its default size.
struct BackendInfo {
  AttnBackend backend;
  std::string summary;
  bool automatic = false;              // automatic selection may take it
  std::optional<std::string> why_not;  // empty: usable
  std::vector<BreakerInfo> breakers;   // of all models, those that are not closed
};

// A cancel that any thread may raise; work ends at its next stop point, and a step that was left so
// did not happen.
struct CancelToken {
  std::atomic<bool> cancelled{false};
};

// Whose sessions they are: those that were opened, and those that were forked from them. Shared
// with the engine.
struct SessionOwner {
  // Runs once, on the engine thread, where the engine ends all of them: ABORTED (reason
  // SESSION_IDLE) or UNAVAILABLE (reason DRAINING).
  std::function<void(const Error&)> ended;
  const std::shared_ptr<CancelToken> gone = std::make_shared<CancelToken>();  // the engine's
};

class Engine {
 public:
  using SubmitResult = std::variant<JobSnapshot, Error>;
  using DenoiseOutcome = std::variant<DenoiseResult, Error>;
  // kNotKept: it stops here, but the disk does not take the wish; a server that comes after a crash
  // would not know of it.
  enum class CancelResult : uint8_t { kCancelling, kNotFound, kAlreadyFinished, kNotKept };

  // Loads every model of the repository and starts the thread. Throws Error naming the file or
  // option; a folder that cannot be loaded is kept in ListFailedModels unless all are like that.
  // `observer` and `logger` are borrowed and outlive the engine.
  static std::unique_ptr<Engine> Create(const EngineOptions& options, Observer* observer,
                                        Logger* logger);
  virtual ~Engine() = default;

  // Any thread, all of these.

  // Validates and queues. `done` runs once, when the job is kept (on disk, where the store is
  // durable) or refused, on the caller's thread or on the store's, and as JobStore::Accept says.
  // An error is INVALID_ARGUMENT (field named), NOT_FOUND (model), RESOURCE_EXHAUSTED (queue full,
  // reason QUEUE_FULL; more than fits, reason MEMORY, and with a time to retry where memory is
  // short just now; nowhere to keep it, reason DISK), FAILED_PRECONDITION (reason
  // DEADLINE_UNREACHABLE), ALREADY_EXISTS (the key of another request, reason IDEMPOTENCY_KEY),
  // UNIMPLEMENTED (a format that this build cannot write) or UNAVAILABLE (draining, reason
  // DRAINING).
  virtual void Submit(GenerationRequest request, std::function<void(SubmitResult)> done) = 0;
  SubmitResult Submit(GenerationRequest request) {  // waits for it
    return Waited<SubmitResult>([&](auto done) { Submit(std::move(request), std::move(done)); });
  }
  // The wish, as the next two, outlives a crash where the store is durable.
  virtual CancelResult Cancel(const std::string& job_id) = 0;
  // Puts a job aside at its next boundary of units, and lets it go on from there, with the same
  // bits. No value: done, or it was so. NOT_FOUND; FAILED_PRECONDITION where it has ended, or its
  // files are being written; RESOURCE_EXHAUSTED (reason DISK); UNAVAILABLE (reason DRAINING) for a
  // Resume while the engine drains, and for a Suspend of what just ends with it.
  virtual std::optional<Error> Suspend(const std::string& job_id) = 0;
  virtual std::optional<Error> Resume(const std::string& job_id) = 0;
  // Forgets an ended job with its files. NOT_FOUND, FAILED_PRECONDITION.
  virtual std::optional<Error> Delete(const std::string& job_id) = 0;
  virtual JobStore& jobs() = 0;
  // What readers are shown: what jobs() has by Get, After and List, and of those that wait where
  // they stand now.
  std::optional<JobSnapshot> Job(const std::string& id) { return Placed(jobs().Get(id)); }
  std::optional<JobSnapshot> JobAfter(const std::string& id, uint64_t sequence) {
    return Placed(jobs().After(id, sequence));
  }
  JobPage ListJobs(std::optional<JobState> state, size_t page_size, const std::string& page_token) {
    JobPage page = jobs().List(state, page_size, page_token);
    for (JobSnapshot& job : page.jobs) AddPlace(&job);
    return page;
  }
  // Of a job that waits its place in the order and its predicted times, as they are now; of any
  // other none. O(log jobs).
  virtual void AddPlace(JobSnapshot* job) const = 0;

  // One step. `done` runs exactly once, on a thread of the engine (or on the caller's, for an early
  // refusal). A raised `cancel` gives CANCELLED at the step's next stop point.
  virtual void Denoise(DenoiseRequest request, std::shared_ptr<CancelToken> cancel,
                       std::function<void(DenoiseOutcome)> done) = 0;

  // Sessions (runtime/session.h). Each `done` runs exactly once, on the engine thread or, for an
  // early refusal, on the caller's. The verbs of one session are done in the order in which they
  // came; those of several at once, and their steps share forwards. What is refused or fails leaves
  // a session as it was, but for the steps that were done until then.
  using SessionDone = std::function<void(SessionReply)>;
  // Refuses what Submit and Denoise refuse, and RESOURCE_EXHAUSTED (reason TOO_MANY_SESSIONS).
  virtual void OpenSession(std::shared_ptr<SessionOwner> owner, SessionRequest request,
                           SessionDone done) = 0;
  // NOT_FOUND (reason SESSION_NOT_FOUND) for an id that is not the owner's.
  virtual void AskSession(const std::shared_ptr<SessionOwner>& owner, const std::string& id,
                          SessionVerb verb, SessionDone done) = 0;
  // Ends all of them at once, a step at its next stop point. Nobody is told but who waits.
  virtual void LeaveSessions(const std::shared_ptr<SessionOwner>& owner) = 0;
  virtual int64_t open_sessions() const = 0;

  // By name, as they serve now.
  virtual std::vector<ModelInfo> ListModels() const = 0;
  // By name: folders whose last loading failed, whether an earlier one serves or not.
  virtual std::vector<FailedModel> ListFailedModels() const = 0;
  // Reads a model's folder again beside all work, checks it as Create does, and only then has it
  // serve in the place of the one of its name. What has begun, sessions and calls end with the
  // model that they began with; jobs that wait or are suspended go over, from step 0 where they had
  // reached more, and so does all that comes. `done` runs exactly once, on a thread of the engine,
  // or on the caller's for an early refusal: INVALID_ARGUMENT (name), NOT_FOUND (reason
  // MODEL_NOT_FOUND), FAILED_PRECONDITION with the reason and message of ListFailedModels,
  // RESOURCE_EXHAUSTED (reason MEMORY: both must fit), ABORTED (reason MODEL_CHANGING: one change
  // of models at a time), UNAVAILABLE (draining, also while it loads). What served goes on then.
  using LoadDone = std::function<void(std::variant<ModelLoaded, Error>)>;
  virtual void LoadModel(ModelChange change, LoadDone done) = 0;
  // Takes a model away; done when its memory is free. NOT_FOUND; FAILED_PRECONDITION for the
  // default among others (reason MODEL_IS_DEFAULT) and, without `force`, for one with work (reason
  // MODEL_BUSY); with it that work ends as ABORTED (reason MODEL_UNLOADED). Else as LoadModel.
  using UnloadDone = std::function<void(std::variant<ModelUnloaded, Error>)>;
  virtual void UnloadModel(ModelChange change, UnloadDone done) = 0;
  // Its leases of an earlier process are there from the beginning, where the store is durable; each
  // change of them is in the audit.
  virtual SelectionPolicy& policy() = 0;
  // Of all that operators change; who changes something else than leases writes it there.
  virtual Audit& audit() = 0;
  virtual Tuner& tuner() = 0;
  // Checks a force before it is made: the value is NOT_FOUND (scope.model, scope.job_id),
  // FAILED_PRECONDITION with the usable names where it could serve no layer in its scope,
  // INVALID_ARGUMENT naming a field of the scope, or "parameters.<key>" where it could serve none
  // with these; FAILED_PRECONDITION (reason SHADOWS_OFF) where nobody would judge its budget.
  virtual std::optional<Error> CheckForce(const LeaseRequest& request) const = 0;
  virtual std::vector<BackendInfo> ListBackends() const = 0;
  // Circuit breakers that are not closed, of all models and backends.
  virtual std::vector<BreakerInfo> Breakers() const = 0;
  // Has a backend do wrong for a while, in all models. Throws FAILED_PRECONDITION (reason
  // DRILLS_OFF) without EngineOptions::enable_drills, INVALID_ARGUMENT naming "ttl".
  virtual void Drill(const DrillRequest& request) = 0;
  // Compares backends on the work that runs, within EngineOptions::shadow_budget. Throws what
  // CheckForce gives ("candidate", "baseline" for its "backend"), INVALID_ARGUMENT naming the
  // field, FAILED_PRECONDITION (reason SHADOWS_OFF), RESOURCE_EXHAUSTED (reason TOO_MANY_SHADOWS),
  // UNAVAILABLE (draining, reason DRAINING).
  virtual ShadowInfo Shadow(const ShadowRequest& request) = 0;
  virtual std::vector<ShadowInfo> ListShadows() const = 0;  // live ones and the last, newest first
  // What it found. Throws NOT_FOUND (reason SHADOW_NOT_FOUND).
  virtual ShadowInfo StopShadow(const std::string& id) = 0;
  // Of a lease with a budget: samples until now, and what its statistic is at least by them.
  // Nothing where there are none.
  virtual std::optional<std::pair<int64_t, double>> Judged(const std::string& lease_id) const = 0;
  // By role, in the enum's order, as the selection is now; with the query's lease as it would be.
  // Refuses what Submit refuses: throws NOT_FOUND (model) and INVALID_ARGUMENT (sizes, parameters,
  // the place, "what_if.<field>"); a strict wish that cannot be granted is the role's `error`.
  virtual std::vector<Explanation> Explain(const ExplainQuery& query) const = 0;

  virtual int64_t queue_depth() const = 0;   // waiting jobs
  virtual int64_t running_jobs() const = 0;  // that have begun and not ended
  // How short of memory the process is; looked at some times a second. New work is refused here,
  // the rest of the steps is the server's.
  virtual MemoryPressure Pressure() const = 0;
  // The unit that hangs, in a sentence: the process ends soon where it does not end.
  virtual std::optional<std::string> Hung() const = 0;

  // Refuses new work from now on; queued and running jobs go on. Idempotent.
  virtual void Drain() = 0;
  virtual bool draining() const = 0;
  // Drains; where the store is durable, jobs that wait stay there for the next start.
  virtual void BeginNoMore() = 0;
  // Since BeginNoMore on a durable store: what does not run goes on at the next start only.
  virtual bool leaves_waiting() const = 0;
  // True once nothing runs, and nothing waits but what BeginNoMore leaves; waits at most `timeout`.
  virtual bool WaitIdle(std::chrono::milliseconds timeout) = 0;
  // Drains, and ends all work: jobs go on at the next start where the store is durable, and are
  // cancelled else. Returns at once: what runs ends at its next stop point, everything else has
  // ended already.
  virtual void Stop() = 0;
  // Stop, then joins the thread. The destructor does the same.
  virtual void Shutdown() = 0;

 private:
  std::optional<JobSnapshot> Placed(std::optional<JobSnapshot> job) const {
    if (job) AddPlace(&*job);
    return job;
  }
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_H_
