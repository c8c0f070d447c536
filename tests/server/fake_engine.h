// An Engine without models or thread: tests say what happens to a job and when.
#ifndef DENOISED_TESTS_SERVER_FAKE_ENGINE_H_
#define DENOISED_TESTS_SERVER_FAKE_ENGINE_H_

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/audit.h"
#include "runtime/engine.h"
#include "runtime/engine/lease_keeping.h"
#include "tests/forwarding_store.h"
#include "tests/server/fake_tuner.h"

namespace denoised {

// The memory store, ready or not as a test says, or durable on a disk that takes nothing.
class FakeStore : public ForwardingStore {
 public:
  FakeStore() : ForwardingStore(MakeMemoryJobStore(1000, 1 << 30)) {}
  bool durable() const override { return on_full_disk; }
  void Interrupt(const std::string& id) override {
    if (!on_full_disk) return ForwardingStore::Interrupt(id);
    ++interrupts;
    throw Error(StatusCode::kResourceExhausted, "the disk is full", "", "DISK");
  }
  std::atomic<bool> on_full_disk{false};
  std::atomic<int> interrupts{0};  // that it did not keep
  void SayNotReady(const std::string& why) {
    const std::lock_guard lock(mutex_);
    why_not_ = why;
  }
  std::optional<std::string> WhyNotReady() const override {
    const std::lock_guard lock(mutex_);
    return why_not_.empty() ? std::nullopt : std::optional(why_not_);
  }

 private:
  mutable std::mutex mutex_;
  std::string why_not_;
};

// Thread-safe. Jobs stay QUEUED until a test calls Change or Succeed. Refuses prompts over 64 KiB,
// the model "missing", and everything while draining or full, with the errors that the interface
// promises.
class FakeEngine : public Engine {
 public:
  using Engine::Submit;
  void Submit(GenerationRequest request, std::function<void(SubmitResult)> done) override {
    SubmitResult result = Take(std::move(request));
    {
      const std::lock_guard lock(mutex_);
      if (hold_submits) {
        held_submits_.push_back([done, result = std::move(result)] { done(result); });
        changed_.notify_all();
        return;
      }
    }
    done(std::move(result));
  }
  // Submits wait for the disk while this is set, and answer at ReleaseSubmits.
  std::atomic<bool> hold_submits{false};
  bool WaitForHeldSubmits(size_t count) {
    return WaitFor([&] { return held_submits_.size() >= count; });
  }
  void ReleaseSubmits() {
    std::vector<std::function<void()>> held;
    {
      const std::lock_guard lock(mutex_);
      hold_submits = false;
      held.swap(held_submits_);
    }
    for (const auto& answer : held) answer();
  }

  CancelResult Cancel(const std::string& job_id) override {
    const auto job = store_->Get(job_id);
    if (!job) return CancelResult::kNotFound;
    if (IsTerminal(job->state)) return CancelResult::kAlreadyFinished;
    Change(job_id, [](JobSnapshot& j) { j.state = JobState::kCancelled; });
    std::lock_guard lock(mutex_);
    cancelled_.push_back(job_id);
    changed_.notify_all();
    return CancelResult::kCancelling;
  }

  std::optional<Error> Suspend(const std::string& job_id) override {
    return Move(job_id, JobState::kSuspended);
  }
  std::optional<Error> Resume(const std::string& job_id) override {
    return Move(job_id, JobState::kQueued);
  }
  std::optional<Error> Delete(const std::string& job_id) override {
    try {
      store_->Delete(job_id);
      return std::nullopt;
    } catch (const Error& error) {
      return error;
    }
  }

  FakeStore& jobs() override { return *store_; }
  std::optional<std::string> Hung() const override {
    const std::lock_guard lock(mutex_);
    return hung_;
  }
  MemoryPressure Pressure() const override {
    const std::lock_guard lock(mutex_);
    ++pressure_asked;
    return pressure_;
  }
  mutable std::atomic<int> pressure_asked{0};
  void SayPressure(const MemoryPressure& pressure) {
    const std::lock_guard lock(mutex_);
    pressure_ = pressure;
  }
  void SayHung(std::optional<std::string> unit) {
    const std::lock_guard lock(mutex_);
    hung_ = std::move(unit);
  }
  void AddPlace(JobSnapshot* job) const override {
    if (place) place(job);
  }
  // What keeps new jobs out by the store's word; "" = nothing.
  void SayNotReady(const std::string& why) { store_->SayNotReady(why); }

  void Denoise(DenoiseRequest request, std::shared_ptr<CancelToken> cancel,
               std::function<void(DenoiseOutcome)> done) override {
    std::unique_lock lock(mutex_);
    NoteThread("Denoise");
    denoise_ = std::move(request);
    cancel_token_ = cancel;
    if (hold_denoise) {
      pending_denoise_ = std::move(done);
      changed_.notify_all();
      return;
    }
    lock.unlock();
    done(denoise_outcome);
  }

  // Each open is a session of its own, each verb waits for AnswerSession.
  void OpenSession(std::shared_ptr<SessionOwner> owner, SessionRequest request,
                   SessionDone done) override {
    SessionReply reply;
    {
      std::lock_guard lock(mutex_);
      NoteThread("OpenSession");
      owner_ = std::move(owner);
      session_request_ = std::move(request);
      reply.error = refuse_session;
      if (!refuse_session) reply.state.id = "session" + std::to_string(++sessions_);
      if (!refuse_session) reply.opened = SessionOpened{};
    }
    done(std::move(reply));
  }
  void AskSession(const std::shared_ptr<SessionOwner>&, const std::string& id, SessionVerb verb,
                  SessionDone done) override {
    std::lock_guard lock(mutex_);
    asked_.push_back({id, std::move(verb), std::move(done)});
    ++verbs_;
    changed_.notify_all();
  }
  void LeaveSessions(const std::shared_ptr<SessionOwner>& owner) override {
    std::lock_guard lock(mutex_);
    owner->gone->cancelled = true;
    changed_.notify_all();
  }
  int64_t open_sessions() const override {
    std::lock_guard lock(mutex_);
    return sessions_;
  }

  // What was asked of a session and not answered.
  struct AskedSession {
    std::string id;
    SessionVerb verb;
    SessionDone done;
  };
  // The oldest one that waits.
  std::optional<AskedSession> NextAsked() {
    if (!WaitFor([&] { return !asked_.empty(); })) return std::nullopt;
    std::lock_guard lock(mutex_);
    AskedSession asked = std::move(asked_.front());
    asked_.erase(asked_.begin());
    return asked;
  }
  bool WaitForVerbs(int64_t count) {
    return WaitFor([&] { return verbs_ >= count; });
  }
  bool WaitForLeft() {
    return WaitFor([&] { return owner_ != nullptr && owner_->gone->cancelled; });
  }
  int64_t verbs() const {
    std::lock_guard lock(mutex_);
    return verbs_;
  }
  std::shared_ptr<SessionOwner> session_owner() const {
    std::lock_guard lock(mutex_);
    return owner_;
  }
  SessionRequest session_request() const {
    std::lock_guard lock(mutex_);
    return session_request_;
  }

  std::vector<ModelInfo> ListModels() const override {
    const std::lock_guard lock(mutex_);
    return models_;
  }
  std::vector<FailedModel> ListFailedModels() const override {
    const std::lock_guard lock(mutex_);
    return failed_models_;
  }
  void SetModels(std::vector<ModelInfo> models, std::vector<FailedModel> failed) {
    const std::lock_guard lock(mutex_);
    models_ = std::move(models);
    failed_models_ = std::move(failed);
  }
  void LoadModel(ModelChange change, LoadDone done) override {
    if (hold_load) {
      std::lock_guard lock(mutex_);
      pending_load_ = std::move(done);
      changed_.notify_all();
      return;
    }
    ModelLoaded loaded;
    loaded.model.name = change.name + " by " + change.who.substr(0, 4) + ", " + change.reason;
    loaded.previous_digest = "before";
    loaded.on_previous = 2;
    refuse_change ? done(*refuse_change) : done(std::move(loaded));
  }
  void UnloadModel(ModelChange change, UnloadDone done) override {
    refuse_change ? done(*refuse_change) : done(ModelUnloaded{change.force ? 3 : 0, 1});
  }
  SelectionPolicy& policy() override { return policy_; }
  Audit& audit() override { return audit_; }
  FakeTuner& tuner() override { return tuner_; }
  std::optional<Error> CheckForce(const LeaseRequest& request) const override {
    if (request.parameters.find("wrong") != std::string::npos) {
      return InvalidField("parameters.wrong", "no such parameter");
    }
    if (request.backend != AttnBackend::kSageAttn) return std::nullopt;
    return Error(StatusCode::kFailedPrecondition, "SAGE_ATTN: not in this build; usable: REFERENCE",
                 "backend", "BACKEND_NOT_USABLE");
  }
  std::vector<BackendInfo> ListBackends() const override {
    return {{AttnBackend::kTorchSdpa, "LibTorch's", true, std::nullopt, breakers},
            {AttnBackend::kSageAttn, "", false, "not in this build", {}}};
  }
  std::vector<BreakerInfo> Breakers() const override { return breakers; }
  ShadowInfo Shadow(const ShadowRequest& request) override {
    std::lock_guard lock(mutex_);
    const ShadowStatistics found{
        AttnBackend::kReference, AttentionRole::kSelf, "0.2-0.4", 7, 0.1, 0.2, 0.3, 0.4, 0.5};
    shadows_.push_back({"shadow-" + std::to_string(shadows_.size() + 1),
                        request,
                        request.ttl,
                        "",
                        {found},
                        {0.25, 100, 0.02}});
    return shadows_.back();
  }
  std::vector<ShadowInfo> ListShadows() const override {
    std::lock_guard lock(mutex_);
    return {shadows_.rbegin(), shadows_.rend()};
  }
  ShadowInfo StopShadow(const std::string& id) override {
    std::lock_guard lock(mutex_);
    for (ShadowInfo& shadow : shadows_) {
      if (shadow.id != id || !shadow.end.empty()) continue;
      shadow.end = "stopped";
      shadow.remaining = std::chrono::milliseconds(0);
      return shadow;
    }
    throw Error(StatusCode::kNotFound, "no live shadow", "id", "SHADOW_NOT_FOUND");
  }
  std::optional<std::pair<int64_t, double>> Judged(const std::string& lease_id) const override {
    return judged;
  }
  void Drill(const DrillRequest& request) override {
    if (!drills_on) {
      throw Error(StatusCode::kFailedPrecondition, "drills are off", "", "DRILLS_OFF");
    }
    std::lock_guard lock(mutex_);
    drills_.push_back(request);
  }
  std::vector<Explanation> Explain(const ExplainQuery& query) const override {
    {
      std::lock_guard lock(mutex_);
      NoteThread("Explain");
    }
    last_query_ = query;
    if (!explanations.empty()) return explanations;
    if (query.model == "missing") throw Error(StatusCode::kNotFound, "no model", "model");
    Explanation self;
    self.role = AttentionRole::kSelf;
    self.selection.granted.backend = query.attention.backend.value_or(AttnBackend::kTorchSdpa);
    self.spec.q_len = query.height.value_or(64);
    self.candidates = {{AttnBackend::kTorchSdpa, true, std::nullopt},
                       {AttnBackend::kSageAttn, true, "not in this build"}};
    self.measured = MeasuredChoice{
        KeyOf(self.spec, 2), MeasuredRow{AttnBackend::kTorchSdpa, 0.5, 0.25},
        std::chrono::system_clock::time_point(std::chrono::seconds(1700000000)), "a note"};
    Explanation cross = self;
    cross.role = AttentionRole::kCross;
    cross.error = JobError{StatusCode::kFailedPrecondition, "nothing can serve", "", ""};
    return {self, cross};
  }

  int64_t queue_depth() const override {
    std::lock_guard lock(mutex_);
    return queued_;
  }
  int64_t running_jobs() const override { return 1; }
  void Drain() override {
    std::lock_guard lock(mutex_);
    draining_ = true;
  }
  bool draining() const override {
    std::lock_guard lock(mutex_);
    return draining_;
  }
  void BeginNoMore() override { leaves = true; }
  bool leaves_waiting() const override { return leaves && store_->durable(); }
  bool WaitIdle(std::chrono::milliseconds) override { return idle; }
  void Stop() override { ++stops; }
  void Shutdown() override {}

  // ---- for tests

  void Change(const std::string& job_id, const std::function<void(JobSnapshot&)>& change) {
    store_->Update(job_id, change);
  }
  // Ends the job with one result of `bytes`.
  void Succeed(const std::string& job_id, const std::string& bytes) {
    const ArtifactInfo info = {ArtifactFormat::kMp4, "video.mp4", bytes.size(), "00"};
    store_->PutArtifact(job_id, info, bytes);
    Change(job_id, [&](JobSnapshot& job) {
      job.artifacts = {info};
      job.state = JobState::kSucceeded;
    });
  }
  void Fail(const std::string& job_id, JobError error) {
    Change(job_id, [&](JobSnapshot& job) {
      job.error = std::move(error);
      job.state = JobState::kFailed;
    });
  }
  bool WaitForCancel(const std::string& job_id) {
    return WaitFor([&] {
      return std::find(cancelled_.begin(), cancelled_.end(), job_id) != cancelled_.end();
    });
  }
  bool WaitForRequests(size_t count) {
    return WaitFor([&] { return requests_.size() >= count; });
  }
  LoadDone TakePendingLoad() {
    if (!WaitFor([&] { return pending_load_ != nullptr; })) return nullptr;
    std::lock_guard lock(mutex_);
    return std::exchange(pending_load_, nullptr);
  }
  bool WaitForDenoise() {
    return WaitFor([&] { return pending_denoise_ != nullptr; });
  }
  GenerationRequest last_request() const {
    std::lock_guard lock(mutex_);
    return requests_.back();
  }
  ExplainQuery last_query() const {
    std::lock_guard lock(mutex_);
    return last_query_;
  }
  DenoiseRequest denoise_request() const {
    std::lock_guard lock(mutex_);
    return *denoise_;
  }
  std::vector<DrillRequest> drills() const {
    std::lock_guard lock(mutex_);
    return drills_;
  }
  // The name of the thread that came with the last such call.
  std::string thread_of(const std::string& call) const {
    std::lock_guard lock(mutex_);
    const auto found = threads_.find(call);
    return found == threads_.end() ? "" : found->second;
  }
  const CancelToken& cancel_token() const { return *cancel_token_; }
  void FinishDenoise() {
    std::function<void(DenoiseOutcome)> done;
    {
      std::lock_guard lock(mutex_);
      done = std::exchange(pending_denoise_, nullptr);
    }
    done(denoise_outcome);
  }

  std::atomic<int> stops{0};
  std::atomic<bool> leaves{false};
  std::atomic<bool> idle{true};
  std::function<void(JobSnapshot*)> place;  // what readers are told beside the store's word
  int64_t max_queued = 1000000;
  std::chrono::milliseconds retry_after{7250};  // of a full queue
  std::function<void()> before_submit;
  bool throw_on_submit = false;
  bool hold_denoise = false;
  DenoiseOutcome denoise_outcome = DenoiseResult{};
  std::optional<Error> refuse_change;  // of models
  bool hold_load = false;
  std::optional<Error> refuse_session;
  std::vector<Explanation> explanations;  // what Explain answers where there are any
  std::vector<BreakerInfo> breakers;
  bool drills_on = false;
  std::optional<std::pair<int64_t, double>> judged;

 private:
  SubmitResult Take(GenerationRequest request) {
    if (before_submit) before_submit();
    std::lock_guard lock(mutex_);
    NoteThread("Submit");
    if (throw_on_submit) throw std::runtime_error("engine broke");
    if (draining_) return Error(StatusCode::kUnavailable, "draining", "", "DRAINING");
    if (request.model == "missing") {
      return Error(StatusCode::kNotFound, "no model 'missing'", "model", "MODEL_NOT_FOUND");
    }
    if (request.prompt.size() > 65536) {
      return InvalidField("prompt",
                          "at most 65536 bytes, got " + std::to_string(request.prompt.size()));
    }
    if (queued_ >= max_queued) {
      return Error(StatusCode::kResourceExhausted, "queue full", "", "QUEUE_FULL")
          .RetryAfter(retry_after);
    }
    JobSnapshot job;
    job.id = "job" + std::to_string(++last_id_);
    job.prompt = request.prompt;
    job.num_steps = request.num_inference_steps.value_or(4);
    job.created_at = std::chrono::system_clock::now();
    job = store_->Add(job, request).first;
    requests_.push_back(std::move(request));
    ++queued_;
    changed_.notify_all();
    return job;
  }

  void NoteThread(const std::string& call) const {  // under mutex_
    std::array<char, 16> name{};
    pthread_getname_np(pthread_self(), name.data(), name.size());
    threads_[call] = name.data();
  }

  std::optional<Error> Move(const std::string& job_id, JobState to) {
    const auto job = store_->Get(job_id);
    if (!job) return Error(StatusCode::kNotFound, "no such job", "job_id", "JOB_NOT_FOUND");
    if (IsTerminal(job->state)) {
      return Error(StatusCode::kFailedPrecondition, "ended", "", "JOB_FINISHED");
    }
    Change(job_id, [to](JobSnapshot& changed) { changed.state = to; });
    return std::nullopt;
  }

  template <typename Condition>
  bool WaitFor(const Condition& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), condition);
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<ModelInfo> models_ = {ModelInfo{}};
  std::vector<FailedModel> failed_models_;
  const std::unique_ptr<FakeStore> store_ = std::make_unique<FakeStore>();
  SelectionPolicy policy_;
  Logger logger_{stderr, LogLevel::kError};
  Audit audit_{&store_->control(), &logger_};
  LeaseKeeping leases_{&policy_, store_->control(), &audit_};
  FakeTuner tuner_;
  mutable std::map<std::string, std::string> threads_;
  mutable ExplainQuery last_query_;
  std::vector<std::function<void()>> held_submits_;
  std::vector<GenerationRequest> requests_;
  std::vector<std::string> cancelled_;
  std::optional<DenoiseRequest> denoise_;
  std::shared_ptr<CancelToken> cancel_token_;
  std::function<void(DenoiseOutcome)> pending_denoise_;
  LoadDone pending_load_;
  std::vector<DrillRequest> drills_;
  std::vector<ShadowInfo> shadows_;
  int64_t queued_ = 0, last_id_ = 0;
  std::shared_ptr<SessionOwner> owner_;
  SessionRequest session_request_;
  std::vector<AskedSession> asked_;
  int64_t sessions_ = 0, verbs_ = 0;
  std::optional<std::string> hung_;
  MemoryPressure pressure_;
  bool draining_ = false;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_SERVER_FAKE_ENGINE_H_
