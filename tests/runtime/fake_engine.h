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

#include "runtime/audit.h"
#include "runtime/engine/engine_impl.h"
#include "tests/runtime/fake_pipeline.h"

namespace denoised {

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
  void OnAttention(AttnBackend, AttentionRole, uint64_t calls, std::optional<double>) override {
    attention_calls += calls;
  }
  void OnFallback(AttnBackend from, AttnBackend to, SelectionSource source) override {
    const std::lock_guard lock(mutex);
    fallbacks.emplace_back(from, to, source);
  }
  void OnBackendSwitch(SelectionSource cause) override {
    const std::lock_guard lock(mutex);
    switches.push_back(cause);
  }
  void OnJobStarted(const std::string&, Priority, double queue_wait_seconds) override {
    ++started;
    if (queue_wait_seconds < 0) ++negative_waits;
  }
  void OnPreemption(const std::string&) override { ++preemptions; }
  void OnJobFinished(const std::string&, JobState outcome) override {
    const std::lock_guard lock(mutex);
    ++finished[outcome];
  }

  std::atomic<int64_t> steps{0}, started{0}, negative_waits{0}, preemptions{0};
  std::atomic<uint64_t> attention_calls{0};
  std::mutex mutex;
  std::vector<JobStage> stages;
  std::vector<std::tuple<AttnBackend, AttnBackend, SelectionSource>> fallbacks;
  std::vector<SelectionSource> switches;
  std::map<JobState, int64_t> finished;
};

// The memory store, with a memory of every event.
class RecordingStore : public JobStore {
 public:
  explicit RecordingStore(std::unique_ptr<JobStore> inner) : inner_(std::move(inner)) {}

  bool durable() const override { return inner_->durable(); }
  std::pair<JobSnapshot, bool> Add(const JobSnapshot& job,
                                   const GenerationRequest& request) override;
  std::optional<JobSnapshot> MadeBefore(const GenerationRequest& request) const override {
    return inner_->MadeBefore(request);
  }
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
  ControlStore& control() override { return inner_->control(); }
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
