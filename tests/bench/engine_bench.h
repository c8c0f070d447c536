// The whole engine with a pipeline whose units are nothing but time, for the rows of engine_bench.
#ifndef DENOISED_TESTS_BENCH_ENGINE_BENCH_H_
#define DENOISED_TESTS_BENCH_ENGINE_BENCH_H_

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/engine/engine_impl.h"
#include "runtime/log.h"
#include "tests/runtime/fake_pipeline.h"

namespace denoised {

using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

inline double Since(SteadyClock::time_point start) {
  return Seconds(SteadyClock::now() - start).count();
}

// On a disk, whose patience is part of what is measured.
class DiskFolder {
 public:
  DiskFolder() {
    std::string name = std::filesystem::temp_directory_path() / "denoised_bench_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~DiskFolder() { std::filesystem::remove_all(path_); }
  DiskFolder(const DiskFolder&) = delete;
  DiskFolder& operator=(const DiskFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Computes, as a unit would: a sleeping thread would be late in waking.
inline void Spin(double seconds) {
  const auto start = SteadyClock::now();
  while (Since(start) < seconds) {
  }
}

class CheckpointSeconds : public Observer {
 public:
  void OnCheckpoint(const std::string&, double seconds) override {
    total = total + seconds;
    ++count;
  }
  std::atomic<double> total = 0;
  std::atomic<int64_t> count = 0;
};

// Members end in the right order.
struct BenchEngine {
  explicit BenchEngine(EngineOptions options) {
    auto policy = std::make_unique<SelectionPolicy>(std::nullopt);
    LoadedRepository loaded;
    loaded.pipelines.push_back(std::make_unique<FakePipeline>(&model, policy.get()));
    loaded.default_model = model.name;
    auto store = options.state_dir.empty()
                     ? MakeMemoryJobStore(static_cast<size_t>(options.max_finished_jobs),
                                          static_cast<size_t>(options.max_artifact_bytes))
                     : OpenJobStore({.state_dir = options.state_dir,
                                     .max_finished = static_cast<size_t>(options.max_finished_jobs),
                                     .hooks = nullptr},
                                    &logger);
    engine = std::make_unique<EngineImpl>(options, std::move(policy), std::move(loaded),
                                          std::move(store), &observer, &logger);
  }
  std::string Submit(GenerationRequest request) {
    auto result = engine->Submit(std::move(request));
    if (const auto* error = std::get_if<Error>(&result)) throw *error;
    return std::get<JobSnapshot>(result).id;
  }
  void AwaitIdle() {
    while (!engine->WaitIdle(std::chrono::hours(1))) {
    }
  }

  FakeModel model;
  CheckpointSeconds observer;
  std::FILE* const log_stream = std::fopen("/dev/null", "w");
  Logger logger{log_stream};
  std::unique_ptr<EngineImpl> engine;
};

inline GenerationRequest JobOf(int64_t steps,
                               ArtifactFormat format = ArtifactFormat::kSafetensors) {
  GenerationRequest request;
  request.prompt = "a prompt";
  request.seed = 7;
  request.num_inference_steps = steps;
  request.formats = {format};
  return request;
}

// engine_queue.cc: what the engine adds to a queue's waiting (E9), and what cancelled jobs cost the
// others (E16).
Json QueueOverhead();
Json CancelledShare(int pairs);

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_ENGINE_BENCH_H_
