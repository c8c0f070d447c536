// The scheduler's code in a world of its own: queue and cost model as the engine uses them, works
// that are nothing but times, a clock that jumps from unit to unit. An hour of traffic in a blink.
#ifndef DENOISED_TESTS_RUNTIME_SIMULATED_ENGINE_H_
#define DENOISED_TESTS_RUNTIME_SIMULATED_ENGINE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/cost_model.h"
#include "runtime/engine/work_queue.h"

namespace denoised {

// What units of a shape take, which the scheduler does not know: a step of `rows` rows is
// call + row * max(rows, free_rows) seconds.
struct SimulatedShape {
  std::string group;
  double tokens = 0, multiply_adds = 0;
  double call = 0, row = 0;
  int64_t free_rows = 1;  // as many cost as one
  double encode = 0, chunk = 0;
  double StepSeconds(int64_t rows) const;
};

struct SimulatedJob {
  const SimulatedShape* shape = nullptr;
  int64_t steps = 1, chunks = 1, rows = 1;
  double arrives = 0;
  std::optional<double> deadline;  // on the same clock
  std::string tenant;
  Priority priority = Priority::kNormal;
  int64_t kind = 0;  // whatever the traffic means by it
  double AloneSeconds() const;
};

struct SimulatedOutcome {
  enum class End : uint8_t { kDone, kExpired, kRefused, kUnfinished };
  End end = End::kUnfinished;
  std::optional<double> began;
  double ended = 0;
  double predicted_begin = 0;  // seconds ahead when it came
};

struct SimulationOptions {
  QueueOptions queue;
  int64_t max_running = 16, max_rows = 16;
  bool admits = false;  // refuses deadlines that by prediction cannot be met
  // Unit times vary by so much (the deviation of their logarithm), and one in a hundred takes
  // `stall` times as long.
  double noise = 0.05, stall = 3;
  uint64_t seed = 1;
  std::optional<double> until;  // stops there
};
// The plain peer: one job after the other.
inline SimulationOptions Fifo() {
  SimulationOptions options;
  options.queue = {.policy = QueueOptions::Policy::kFifo, .batching = false};
  return options;
}

struct SimulationResult {
  std::vector<SimulatedOutcome> outcomes;  // one a job, in order
  double busy_seconds = 0, ended = 0;
  int64_t forwards = 0, forward_rows = 0;  // of steps
  int64_t switches = 0;  // the device went to another work before the last one had ended
  int64_t Met(const std::vector<SimulatedJob>& jobs) const;
};

// Jobs in the order of arrival.
SimulationResult Simulate(const std::vector<SimulatedJob>& jobs, const SimulationOptions& options);

// The peer that knows everything: how many deadlines a schedule of one job at a time meets that
// knows all arrivals and true times beforehand and can preempt at any moment. Jobs are taken from
// the shortest as long as earliest deadline first still meets all of those taken; not less than
// what earliest deadline first alone meets.
int64_t OfflineBound(const std::vector<SimulatedJob>& jobs);

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_SIMULATED_ENGINE_H_
