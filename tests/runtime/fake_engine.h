// An engine over an invented model: no weights, no tensors, steps that pass one by one.
#ifndef DENOISED_TESTS_RUNTIME_FAKE_ENGINE_H_
#define DENOISED_TESTS_RUNTIME_FAKE_ENGINE_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/engine_impl.h"
#include "tests/backends/fake_backends.h"

namespace denoised {

// How long a test waits for what must happen before it calls it lost.
inline constexpr std::chrono::seconds kPatience(60);

// Holds the engine thread at a point until the test lets it go on.
class Gate {
 public:
  explicit Gate(bool open) : allowed_(open ? INT64_MAX : 0) {}

  // Engine thread: one pass.
  void Pass();
  // Test thread.
  void Allow(int64_t passes);
  void Open();
  void Close() { SetAllowed(0); }  // what arrives from now on waits
  // True once somebody has arrived for the n-th time (counted from 1, ever).
  bool AwaitArrival(int64_t n);
  int64_t arrivals() const;

 private:
  void SetAllowed(int64_t passes);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int64_t allowed_, arrivals_ = 0;
};

// A value that one thread sets and another waits for.
template <class T>
class Promised {
 public:
  void Set(T value) {
    const std::lock_guard lock(mutex_);
    values_.push_back(std::move(value));
    changed_.notify_all();
  }
  bool Await() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [this] { return !values_.empty(); });
  }
  size_t times() const {
    const std::lock_guard lock(mutex_);
    return values_.size();
  }
  T value() const {
    const std::lock_guard lock(mutex_);
    return values_.at(0);
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<T> values_;
};

// Stands still until a test moves it. Any thread.
class ManualClock {
 public:
  std::chrono::steady_clock::time_point now() const {
    return std::chrono::steady_clock::time_point(std::chrono::hours(1000) + ms());
  }
  void Advance(std::chrono::milliseconds by) { ms_ += by.count(); }
  std::function<std::chrono::steady_clock::time_point()> function() const {
    return [this] { return now(); };
  }

 private:
  std::chrono::milliseconds ms() const { return std::chrono::milliseconds(ms_.load()); }
  std::atomic<int64_t> ms_{0};
};

// Counts everything.
class CountingObserver : public Observer {
 public:
  void OnStep(const std::string&, double) override { ++steps; }
  void OnStage(const std::string&, JobStage stage, double) override {
    const std::lock_guard lock(mutex);
    stages.push_back(stage);
  }
  void OnFallback(AttnBackend from, AttnBackend to, SelectionSource source) override {
    const std::lock_guard lock(mutex);
    fallbacks.emplace_back(from, to, source);
  }
  void OnBackendSwitch(SelectionSource cause) override {
    const std::lock_guard lock(mutex);
    switches.push_back(cause);
  }
  void OnJobStarted(const std::string&, double queue_wait_seconds) override {
    ++started;
    if (queue_wait_seconds < 0) ++negative_waits;
  }
  void OnJobFinished(const std::string&, JobState outcome) override {
    const std::lock_guard lock(mutex);
    ++finished[outcome];
  }

  std::atomic<int64_t> steps{0}, started{0}, negative_waits{0};
  std::mutex mutex;
  std::vector<JobStage> stages;
  std::vector<std::tuple<AttnBackend, AttnBackend, SelectionSource>> fallbacks;
  std::vector<SelectionSource> switches;
  std::map<JobState, int64_t> finished;
};

// Keeps the requests that its builders got, and refuses the parameters "bad".
class BuildingBackend : public FakeBackend {
 public:
  explicit BuildingBackend(AttnBackend id) : FakeBackend(id) {}
  std::unique_ptr<AttentionMetadataBuilder> MakeBuilder() const override;
  std::vector<MetadataRequest> built() const;

 private:
  // Shared with the builders; a caller's thread builds too, when a request is checked.
  struct Record {
    std::mutex mutex;
    std::vector<MetadataRequest> requests;
  };
  class Builder;
  const std::shared_ptr<Record> record_ = std::make_shared<Record>();
};

// Backends that exist only here. In automatic order: CUDNN_ATTN (not in this build), FLASH_ATTN
// (head sizes up to 64), TORCH_SDPA (until told to refuse), REFERENCE; only by name and with
// metadata: SAGE_ATTN, SLIDING_TILE_ATTN.
struct InventedBackends {
  InventedBackends();

  FakeBackend flash, sdpa, reference;
  BuildingBackend sage, sliding;
  std::atomic<bool> sdpa_refuses{false};
  BackendRegistry registry;
};

AttentionSpec SelfSpec();   // lists all but CUDNN_ATTN
AttentionSpec CrossSpec();  // lists TORCH_SDPA and REFERENCE

// What happens in a fake model; the test keeps it and looks at it.
struct FakeModel {
  std::string name = "fake";
  Gate steps{true};    // each step of a job passes here after its plan is made
  Gate denoise{true};  // and each Denoise call here
  Gate finish{true};   // and each job before its frames
  // Engine thread, after the gate; may throw.
  std::function<void(const RunRequest&)> on_begin;
  std::function<void(const RunRequest&, int64_t step)> on_step;
  std::function<void(const RunRequest&)> on_finish;
  std::function<void()> on_denoise;
  std::vector<AttentionSpec> specs = {SelfSpec(), CrossSpec()};
  InventedBackends backends;
  WorkEstimate estimate;  // of every job and call
  std::atomic<int64_t> made_bytes = 0;

  std::atomic<int64_t> steps_run{0}, denoise_calls{0}, live_runs{0};
  std::vector<std::string> began() const;  // prompts of the jobs that began, in order
  void NoteBegin(const std::string& prompt);

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> began_;
};

class FakePipeline : public Pipeline {
 public:
  FakePipeline(FakeModel* model, const SelectionPolicy* policy, bool is_default = true);

  const ModelInfo& info() const override { return info_; }
  const GeometryRules& rules() const override { return rules_; }
  const PlannerSetting& planner_setting() const override { return setting_; }
  std::vector<AttentionSpec> DenoiseSpecs(const ResolvedParameters&) const override {
    return model_->specs;
  }
  void CheckRun(const GenerationRequest& request, const ResolvedParameters&) const override;
  void CheckDenoise(const DenoiseRequest& request) const override;
  WorkEstimate EstimateRun(const GenerationRequest&, const ResolvedParameters&, int64_t,
                           const CostOfAttention&) const override {
    return model_->estimate;
  }
  WorkEstimate EstimateDenoise(const DenoiseRequest&, const CostOfAttention&) const override {
    return model_->estimate;
  }
  int64_t MadeBytes() const override { return model_->made_bytes; }
  std::unique_ptr<GenerationRun> NewRun(RunRequest request) override;
  DenoiseResult Denoise(const DenoiseRequest& request, AttentionPlanner* planner,
                        Observer* observer) override;

 private:
  FakeModel* const model_;
  ModelInfo info_;
  GeometryRules rules_;
  PlannerSetting setting_;
};

// The memory store, with a memory of every event.
class RecordingStore : public JobStore {
 public:
  explicit RecordingStore(std::unique_ptr<JobStore> inner) : inner_(std::move(inner)) {}

  std::pair<JobSnapshot, bool> Add(const JobSnapshot& job,
                                   const GenerationRequest& request) override;
  std::vector<AcceptedJob> Recover() override { return inner_->Recover(); }
  int64_t Start(const std::string& id) override;
  void Interrupt(const std::string& id) override;
  void Checkpoint(const std::string& id, int64_t step, std::string bytes) override {
    inner_->Checkpoint(id, step, std::move(bytes));
  }
  std::optional<std::pair<int64_t, std::string>> ReadCheckpoint(const std::string& id) override {
    return inner_->ReadCheckpoint(id);
  }
  std::optional<JobSnapshot> Get(const std::string& id) const override { return inner_->Get(id); }
  JobPage List(std::optional<JobState> state, size_t page_size,
               const std::string& page_token) const override {
    return inner_->List(state, page_size, page_token);
  }
  std::optional<JobSnapshot> Update(const std::string& id,
                                    const std::function<void(JobSnapshot&)>& change) override;
  void PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) override {
    inner_->PutArtifact(id, std::move(info), std::move(bytes));
  }
  void Delete(const std::string& id) override { inner_->Delete(id); }
  std::shared_ptr<const Artifact> GetArtifact(const std::string& id,
                                              ArtifactFormat format) const override {
    return inner_->GetArtifact(id, format);
  }
  void MarkFetched(const std::string& id) override { inner_->MarkFetched(id); }
  int64_t CountUnfetched(std::chrono::steady_clock::duration age) const override {
    return inner_->CountUnfetched(age);
  }
  size_t artifact_bytes() const override { return inner_->artifact_bytes(); }
  size_t forgettable_bytes() const override { return inner_->forgettable_bytes(); }
  void MakeRoom(size_t bytes) override { inner_->MakeRoom(bytes); }
  std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake) override {
    return inner_->Watch(id, std::move(wake));
  }
  std::vector<JobSnapshot> Replay(const std::string& id, uint64_t sequence) const override {
    return inner_->Replay(id, sequence);
  }
  std::optional<std::string> WhyNotReady() const override { return inner_->WhyNotReady(); }

  // Every state that the job was in, by sequence number.
  std::vector<JobSnapshot> History(const std::string& id) const;

 private:
  void Record(const JobSnapshot& job);

  const std::unique_ptr<JobStore> inner_;
  mutable std::mutex mutex_;
  std::map<std::string, std::map<uint64_t, JobSnapshot>> events_;
};

// The engine with all that it borrows. Members end in the right order.
struct FakeEngine {
  explicit FakeEngine(EngineOptions options = {});
  ~FakeEngine();

  // Submits and gives the id; "" and a test failure where it is refused.
  std::string Submit(const std::string& prompt, std::function<void(GenerationRequest&)> edit = {});
  JobSnapshot Get(const std::string& id) { return engine->jobs().Get(id).value(); }
  // Waits until the job has ended.
  JobSnapshot AwaitEnd(const std::string& id);
  bool WaitIdle() { return engine->WaitIdle(kPatience); }

  ManualClock clock;
  FakeModel model;
  CountingObserver observer;
  std::FILE* log_stream;
  Logger logger;
  RecordingStore* store = nullptr;  // the engine's
  std::unique_ptr<EngineImpl> engine;
};

// Seed 7, the latents as the only result, else the model's defaults (3 steps).
GenerationRequest SmallRequest(const std::string& prompt);

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_FAKE_ENGINE_H_
