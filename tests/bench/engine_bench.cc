// Rows of the engine itself: the whole of it, with a pipeline whose units are nothing but time
// (tests/runtime/fake_pipeline.h), so that what is measured is what stands between the units.
//
//   engine_bench [ROW...]   prints a JSON line a row
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "runtime/engine/engine_impl.h"
#include "runtime/log.h"
#include "runtime/pipelines/run_state.h"
#include "tests/runtime/fake_pipeline.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

double Since(SteadyClock::time_point start) { return Seconds(SteadyClock::now() - start).count(); }

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
void Spin(double seconds) {
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

GenerationRequest JobOf(int64_t steps, ArtifactFormat format = ArtifactFormat::kSafetensors) {
  GenerationRequest request;
  request.prompt = "a prompt";
  request.seed = 7;
  request.num_inference_steps = steps;
  request.formats = {format};
  return request;
}

// ---- B12 ---------------------------------------------------------------------------------------

// Jobs of a prompt, 20 steps and a decode, cancelled at any moment: units that begin afterwards,
// and the time until the slot is free.
Json CancelToFreedSlot() {
  constexpr double kUnit = 0.002;
  constexpr int64_t kSteps = 20, kMoments = 500;
  BenchEngine bench({});
  std::atomic<int64_t> units = 0;
  bench.model.on_unit = [&](const Unit&, int64_t) {
    ++units;
    Spin(kUnit);
  };
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> moment(0, kUnit * (kSteps + 2));
  int64_t most = 0, in_time = 0;
  std::vector<double> seconds;
  while (in_time < kMoments) {
    const std::string id = bench.Submit(JobOf(kSteps, ArtifactFormat::kNpy));
    std::this_thread::sleep_for(Seconds(moment(random)));
    const int64_t before = units;
    const auto start = SteadyClock::now();
    const bool cancelled = bench.engine->Cancel(id) == Engine::CancelResult::kCancelling;
    while (bench.engine->running_jobs() > 0) std::this_thread::yield();
    if (cancelled) {
      ++in_time;
      most = std::max(most, units - before);
      seconds.push_back(Since(start));
    }
    bench.AwaitIdle();
  }
  std::sort(seconds.begin(), seconds.end());
  return {{"row", "B12"},
          {"name", "cancels at 500 random moments, most units that begin before the slot is free"},
          {"value", most},
          {"unit_seconds", kUnit},
          {"p50_units", seconds[seconds.size() / 2] / kUnit},
          {"p99_units", seconds[seconds.size() * 99 / 100] / kUnit}};
}

// ---- B14 ---------------------------------------------------------------------------------------

// A full queue of jobs of many shapes, tenants and priorities: the device's time that no unit has.
// A forward takes as long as its rows, as on a busy device: the shipped model's, on two cores.
Json IdleBetweenUnits(bool durable, int64_t steps) {
  constexpr double kRow = 0.025;
  const DiskFolder folder;
  EngineOptions options;
  if (durable) options.state_dir = folder.path();
  options.max_queued_jobs = 512;
  BenchEngine bench(options);
  // Units of the engine's thread, from when the queue is full until 24 jobs have begun.
  double busy = 0;
  int64_t units = 0;
  SteadyClock::time_point first, last;
  std::atomic<bool> full = false;
  bench.model.on_unit = [&](const Unit&, int64_t rows) {
    const auto begin = SteadyClock::now();
    Spin(kRow * static_cast<double>(rows));
    if (!full) return;
    if (units++ == 0) {
      first = SteadyClock::now();  // what stands before it is none of it
      return;
    }
    last = SteadyClock::now();
    busy += Seconds(last - begin).count();
  };
  bench.model.steps.Close();
  for (int i = 0; i < 256; ++i) {
    GenerationRequest request = JobOf(steps);
    request.width = 64 + 16 * (i % 8);
    request.tenant = std::to_string(i % 5);
    request.priority = static_cast<Priority>(i % 3);
    bench.Submit(std::move(request));
  }
  full = true;
  bench.model.steps.Open();
  while (bench.engine->queue_depth() > 232) std::this_thread::sleep_for(Seconds(0.05));
  full = false;
  bench.engine->Stop();
  bench.AwaitIdle();
  const double all = Seconds(last - first).count();
  return {{"row", "B14"},
          {"name", std::string("the device's idle share, 25 ms a row, 232 to 256 jobs "
                               "queued, jobs of ") +
                       std::to_string(steps) + " steps, " + (durable ? "on disk" : "in memory")},
          {"value", 1 - busy / all},
          {"units", units},
          {"gap_seconds", (all - busy) / static_cast<double>(units)}};
}

// ---- B17 ---------------------------------------------------------------------------------------

// What a run of Wan 2.1 1.3B at 480x832, 81 frames keeps: latents and three more of the solver.
Json CheckpointCost() {
  constexpr double kStep = 0.4;  // as on a fast device; on a CPU it is a hundred times that
  const HostTensor latents{
      DType::kFloat32, {1, 16, 21, 60, 104}, std::string(size_t{1} * 16 * 21 * 60 * 104 * 4, 'x')};
  const RunState state{"request",  "embeddings",
                       7,          latents,
                       "a solver", {{"clean0", latents}, {"clean1", latents}, {"last", latents}}};
  const DiskFolder folder;
  EngineOptions options;
  options.state_dir = folder.path();
  BenchEngine bench(options);
  bench.model.on_save = [&] { return SerializeRunState(state); };
  double busy = 0;
  bench.model.on_unit = [&](const Unit& unit, int64_t) {
    const double seconds = unit.kind == UnitKind::kStep ? kStep : 0.001;
    Spin(seconds);
    busy += seconds;
  };
  bench.Submit(JobOf(100));
  bench.AwaitIdle();
  if (bench.observer.count == 0) throw std::runtime_error("B17: no checkpoint was made");
  return {{"row", "B17"},
          {"name",
           "engine thread's time for checkpoints of 1.3B-shaped runs, share of 100 steps of "
           "0.4 s"},
          {"value", bench.observer.total / busy},
          {"checkpoints", bench.observer.count.load()},
          {"seconds_each", bench.observer.total / static_cast<double>(bench.observer.count)}};
}

// ---- E14 ---------------------------------------------------------------------------------------

double ResidentMib() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE)) / (1 << 20);
}

// Jobs of two steps, sent as fast as they are taken; what the process has grown by from the first
// fifth to the end.
Json MemorySlope() {
  constexpr int64_t kJobs = 10000;
  const DiskFolder folder;
  EngineOptions options;
  options.state_dir = folder.path();
  options.max_finished_jobs = 256;  // else what is remembered of them grows, up to its own bound
  BenchEngine bench(options);
  std::atomic<int64_t> submitted = 0;
  double warm = 0;
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&] {
      while (submitted < kJobs) {
        const auto result = bench.engine->Submit(JobOf(2, ArtifactFormat::kNpy));
        if (std::holds_alternative<Error>(result)) {
          std::this_thread::sleep_for(Seconds(0.002));
        } else if (++submitted == kJobs / 5) {
          malloc_trim(0);
          warm = ResidentMib();
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  bench.AwaitIdle();
  malloc_trim(0);
  const double end = ResidentMib();
  return {{"row", "E14"},
          {"name", "growth from job 2,000 to job 10,000 of the engine with the durable store, MiB"},
          {"value", end - warm},
          {"warm_mib", warm},
          {"live_runs", bench.model.live_runs.load()}};
}

int Measure(int argc, char** argv) {
  std::set<std::string> rows;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--", 0) != 0) rows.insert(argument);  // flags are other programs'
  }
  const auto emit = [&](const char* row, const std::function<Json()>& measure) {
    if (rows.empty() || rows.count(row) > 0) std::cout << measure().dump() << std::endl;
  };
  emit("B12", CancelToFreedSlot);
  emit("B14", [] { return IdleBetweenUnits(false, 20); });
  emit("B14", [] { return IdleBetweenUnits(true, 20); });
  emit("B17", CheckpointCost);
  emit("E14", MemorySlope);
  return 0;
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) { return denoised::Measure(argc, argv); }
