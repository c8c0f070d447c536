// The engine behind engine.h. Its own header so that tests can give it a pipeline of their own.
#ifndef DENOISED_RUNTIME_ENGINE_ENGINE_IMPL_H_
#define DENOISED_RUNTIME_ENGINE_ENGINE_IMPL_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/engine.h"
#include "runtime/engine/memory_admission.h"
#include "runtime/pipelines/estimate.h"
#include "runtime/pipelines/pipeline.h"

namespace denoised {

class EngineImpl : public Engine {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;

  // `pipelines` has exactly one default; deadlines are looked up on `clock`. Starts the thread.
  EngineImpl(const EngineOptions& options, std::unique_ptr<SelectionPolicy> policy,
             std::vector<std::unique_ptr<Pipeline>> pipelines, std::unique_ptr<JobStore> store,
             Observer* observer, Logger* logger, Clock clock = std::chrono::steady_clock::now,
             std::vector<FailedModel> failed_models = {});
  ~EngineImpl() override;

  SubmitResult Submit(GenerationRequest request) override;
  CancelResult Cancel(const std::string& job_id) override;
  JobStore& jobs() override { return *store_; }
  void Denoise(DenoiseRequest request, std::shared_ptr<CancelToken> cancel,
               std::function<void(DenoiseOutcome)> done) override;
  std::vector<ModelInfo> ListModels() const override;
  std::vector<FailedModel> ListFailedModels() const override { return failed_models_; }
  SelectionPolicy& policy() override { return *policy_; }
  std::optional<Error> CheckForce(AttnBackend backend,
                                  const std::string& parameters_json) const override;
  std::vector<BackendInfo> ListBackends() const override;
  std::vector<Explanation> Explain(const ExplainQuery& query) const override;
  int64_t queue_depth() const override;
  int64_t running_jobs() const override;
  void Drain() override;
  bool draining() const override;
  bool WaitIdle(std::chrono::milliseconds timeout) override;
  void CancelAll() override;
  void Shutdown() override;

 private:
  struct QueuedJob {
    std::string id;
    GenerationRequest request;
    ResolvedParameters parameters;
    Pipeline* pipeline = nullptr;
    std::shared_ptr<CancelToken> cancel;
    std::chrono::steady_clock::time_point queued_at;
    WorkEstimate estimate;
  };
  struct DenoiseCall {
    DenoiseRequest request;
    Pipeline* pipeline = nullptr;
    std::shared_ptr<CancelToken> cancel;
    std::function<void(DenoiseOutcome)> done;
    std::chrono::steady_clock::time_point queued_at;
  };

  struct EncodedResult {
    ArtifactInfo info;
    std::string bytes;
  };

  // Any thread.
  Pipeline* FindPipeline(const std::string& name) const;  // throws NOT_FOUND
  QueuedJob Admit(GenerationRequest request) const;
  void CheckAttention(const Pipeline& pipeline, const std::vector<AttentionSpec>& specs,
                      const AttentionOptions& options) const;
  Explanation ExplainSpec(const PlannerSetting& setting, const AttentionSpec& spec,
                          const AttentionOptions& options) const;
  // engine_admission.cc. RequireMemory throws RESOURCE_EXHAUSTED, reason MEMORY.
  enum class Attention : uint8_t { kLeftOut, kIncluded };
  WorkEstimate EstimateOf(const QueuedJob& job, Attention attention) const;
  void RequireMemoryLater(const QueuedJob& job) const;
  void RequireMemoryNow(QueuedJob* job) const;
  void RequireMemory(const DenoiseCall& call) const;
  void RequireBesideResults(const std::string& what, const WorkEstimate& estimate,
                            int64_t held) const;
  int64_t HeldLater() const;
  // By what waits and runs, and by what models have made since loading; takes mutex_.
  int64_t HeldBesideResults() const;
  void FinishJob(const QueuedJob& job, const std::optional<Error>& error, Receipt receipt);
  void RefreshQueuePositions();
  bool Idle() const;  // under mutex_

  // Engine thread.
  void Loop();
  bool TakeJob();
  void RunDenoiseCalls();
  bool TakeDenoiseCall(DenoiseCall* call, size_t* left);
  DenoiseOutcome RunDenoise(const DenoiseCall& call);
  void RunJob(QueuedJob* taken);
  void DriveRun(const QueuedJob& job, AttentionPlanner* planner);
  void Denoising(const QueuedJob& job, GenerationRun* run);
  std::vector<EncodedResult> EncodeResults(const QueuedJob& job, const DecodedVideo& video,
                                           const HostTensor& latents) const;
  void StoreResults(const QueuedJob& job, std::vector<EncodedResult> results);
  void CloseToCancels(const QueuedJob& job);
  void Stage(const QueuedJob& job, JobStage stage, const std::function<void()>& work);
  bool Late(const std::optional<std::chrono::steady_clock::time_point>& deadline) const;
  std::optional<Error> WhyStop(const QueuedJob& job) const;
  std::optional<Error> WhyStop(const DenoiseCall& call) const;
  void Interlude(const QueuedJob& job);
  void ExpireQueued();

  const EngineOptions options_;
  const std::unique_ptr<SelectionPolicy> policy_;
  const std::vector<std::unique_ptr<Pipeline>> pipelines_;
  const std::vector<FailedModel> failed_models_;
  const std::unique_ptr<JobStore> store_;
  Observer* const observer_;
  Logger* const logger_;
  const Clock clock_;
  const MemoryAdmission memory_;
  RoughSpeed speed_;

  std::mutex positions_mutex_;  // one refresh of the queue positions at a time; before mutex_
  mutable std::mutex mutex_;    // guards all below
  std::condition_variable wake_, idle_;
  std::deque<QueuedJob> jobs_;
  std::deque<DenoiseCall> calls_;
  std::optional<QueuedJob> running_;  // written by the engine thread under mutex_
  bool closing_ = false;              // running_ has its results: too late to cancel
  bool calling_ = false;              // a Denoise call is inside the pipeline
  bool draining_ = false;             // no new work
  bool cancelling_ = false;           // all work ends
  bool stopping_ = false;             // the thread ends

  std::mutex join_mutex_;
  std::thread thread_;  // last: starts when everything else is there
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_ENGINE_IMPL_H_
