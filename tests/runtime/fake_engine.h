// An engine over an invented model: no weights, no tensors, steps that pass one by one.
#ifndef DENOISED_TESTS_RUNTIME_FAKE_ENGINE_H_
#define DENOISED_TESTS_RUNTIME_FAKE_ENGINE_H_

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/audit.h"
#include "runtime/engine/engine_impl.h"
#include "tests/forwarding_store.h"
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

// Stands still until a test moves it, and knows how often each thread asked. Any thread.
class ManualClock {
 public:
  std::chrono::steady_clock::time_point now() const {
    {
      const std::lock_guard lock(mutex_);
      ++asked_[std::this_thread::get_id()];
    }
    return std::chrono::steady_clock::time_point(std::chrono::hours(1000) + ms());
  }
  void Advance(std::chrono::milliseconds by) { ms_ += by.count(); }
  std::function<std::chrono::steady_clock::time_point()> function() const {
    return [this] { return now(); };
  }
  std::map<std::thread::id, int64_t> asked() const {
    const std::lock_guard lock(mutex_);
    return asked_;
  }

 private:
  std::chrono::milliseconds ms() const { return std::chrono::milliseconds(ms_.load()); }
  std::atomic<int64_t> ms_{0};
  mutable std::mutex mutex_;
  mutable std::map<std::thread::id, int64_t> asked_;
};

// Of an engine that keeps its jobs in a state folder, and every step of theirs.
inline EngineOptions KeepingIn(const std::filesystem::path& state_dir) {
  EngineOptions options;
  options.state_dir = state_dir;
  options.checkpoint_every = 1;
  return options;
}

// Forwards take this long whatever their rows, so that what is learnt of them is to share them.
inline void SharingPays(FakeModel* model) {
  model->on_unit = [](const Unit&, int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
}

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
  void OnRollback(AttnBackend backend, std::string_view cause) override {
    const std::lock_guard lock(mutex);
    rollbacks.emplace_back(backend, cause);
  }
  void OnAttention(AttnBackend backend, AttentionRole role, uint64_t calls,
                   std::optional<double>) override {
    attention_calls += calls;
    const std::lock_guard lock(mutex);
    attention[{backend, role}] += calls;
  }
  void OnJobStarted(const std::string&, Priority, double queue_wait_seconds) override {
    ++started;
    if (queue_wait_seconds < 0) ++negative_waits;
  }
  void OnPreemption(const std::string&) override { ++preemptions; }
  void OnPutAway(const std::string&, double) override { ++put_away; }
  void OnJobResumed(const std::string&, bool from_checkpoint) override {
    ++(from_checkpoint ? resumed : begun_again);
  }
  void OnJobFinished(const std::string&, JobState outcome) override {
    const std::lock_guard lock(mutex);
    ++finished[outcome];
  }

  std::atomic<int64_t> steps{0}, started{0}, negative_waits{0}, preemptions{0};
  std::atomic<uint64_t> attention_calls{0};
  std::atomic<int64_t> put_away{0}, resumed{0}, begun_again{0};
  std::mutex mutex;
  std::vector<JobStage> stages;
  std::vector<std::tuple<AttnBackend, AttnBackend, SelectionSource>> fallbacks;
  std::vector<SelectionSource> switches;
  std::vector<std::pair<AttnBackend, std::string>> rollbacks;
  std::map<std::pair<AttnBackend, AttentionRole>, uint64_t> attention;
  std::map<JobState, int64_t> finished;
};

// A store with a memory of every event.
class RecordingStore : public ForwardingStore {
 public:
  using ForwardingStore::ForwardingStore;

  void Accept(const JobSnapshot& job, const GenerationRequest& request,
              std::function<void(Added)> done) override;
  std::vector<Started> StartAll(const std::vector<std::string>& ids) override;
  void Interrupt(const std::string& id) override;
  std::optional<JobSnapshot> Update(const std::string& id,
                                    const std::function<void(JobSnapshot&)>& change) override;
  void PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) override;
  uint64_t Touch(const std::string& id) override;

  std::optional<std::string> WhyNotReady() const override {
    return full ? std::optional<std::string>("full") : ForwardingStore::WhyNotReady();
  }
  size_t kept_bytes() const override {
    if (on_kept_bytes) on_kept_bytes();
    return ForwardingStore::kept_bytes();
  }
  std::atomic<bool> full{false};  // its disk, as it says

  // Every state that the job was in, by sequence number.
  std::vector<JobSnapshot> History(const std::string& id) const;
  // Set before the first job. Before each is stored, on the thread that submits it.
  std::function<void(const GenerationRequest&)> on_add;
  // Likewise. After each change, on the thread that made it; and before a result is
  // kept, with what it throws as the disk's answer.
  std::function<void(const JobSnapshot&)> on_change;
  std::function<void(const ArtifactInfo&)> on_artifact;
  // Whenever memory is counted, on any thread: set before the engine is there.
  std::function<void()> on_kept_bytes;

 private:
  void Record(const JobSnapshot& job);
  std::map<std::string, uint64_t> Sequences(const std::vector<std::string>& ids);
  // What the store has of each job after these. A change that gives no job back is known by this
  // alone: other threads change the job too before it can be asked for.
  void RecordAfter(const std::map<std::string, uint64_t>& sequences);

  mutable std::mutex mutex_;
  std::map<std::string, std::map<uint64_t, JobSnapshot>> events_;
};

// A repository whose folders are what a test says, when they are read.
class FakeSource : public ModelSource {
 public:
  explicit FakeSource(const SelectionPolicy* policy) : policy_(policy) {}
  std::unique_ptr<Pipeline> Load(const std::string& name, const AdmitWeights& admit) override;

  Gate loads{true};  // each load passes here, after its bytes were admitted
  // Set before the load; what on_load throws is wrong with the folder.
  std::map<std::string, FakeModel*> folders;
  std::function<void()> on_load;

 private:
  const SelectionPolicy* const policy_;
};

// The engine with all that it borrows. Members end in the right order.
struct FakeEngine {
  // Without `steps_open` the first step waits for its gate, also of a job that is there already.
  // `set_up` is called before the engine is there, which may begin a stored job at once.
  explicit FakeEngine(EngineOptions options = {}, bool steps_open = true, int64_t num_layers = 2,
                      const std::function<void(FakeModel*)>& set_up = {});
  ~FakeEngine();

  // Submits and gives the id; "" and a test failure where it is refused.
  std::string Submit(const std::string& prompt, std::function<void(GenerationRequest&)> edit = {});
  // Submits a job that stands in its first step from then on, as every step does.
  std::string StartBlocked(const std::string& prompt,
                           std::function<void(GenerationRequest&)> edit = {});
  JobSnapshot Get(const std::string& id) { return engine->Job(id).value(); }
  // Waits until the condition holds of the job; false, and a test failure, where it does not.
  bool Await(const std::string& id, const std::function<bool(const JobSnapshot&)>& condition);
  // Waits until the job has ended.
  JobSnapshot AwaitEnd(const std::string& id);
  bool WaitIdle() { return engine->WaitIdle(kPatience); }
  // Waits for what came of it.
  std::variant<ModelLoaded, Error> Load(const std::string& name);
  std::variant<ModelUnloaded, Error> Unload(const std::string& name, bool force = false);

  ManualClock clock;
  FakeModel model;
  CountingObserver observer;
  std::FILE* log_stream;
  Logger logger;
  RecordingStore* store = nullptr;  // the engine's, as the next
  FakeSource* source = nullptr;
  std::unique_ptr<EngineImpl> engine;
};

// Of an outcome that is to be one.
template <typename Outcome>
Error ErrorOf(const std::variant<Outcome, Error>& outcome) {
  if (const auto* error = std::get_if<Error>(&outcome)) return *error;
  ADD_FAILURE() << "it went well";
  return Error(StatusCode::kOk, "");
}

// Seed 7, the latents as the only result, else the model's defaults (3 steps).
GenerationRequest SmallRequest(const std::string& prompt);

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_FAKE_ENGINE_H_
