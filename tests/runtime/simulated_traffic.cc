#include "tests/runtime/simulated_traffic.h"

#include <array>
#include <cmath>
#include <random>

namespace denoised {
namespace {

// A step's overhead is a quarter of a small forward and next to nothing of a large one.
const std::array<SimulatedShape, 3>& Shapes() {
  static const std::array<SimulatedShape, 3> shapes = {{
      {"96", 96, 0.10e9, 0.03, 0.09, 1, 0.02, 0.06},
      {"320", 320, 0.36e9, 0.03, 0.14, 1, 0.02, 0.12},
      {"1560", 1560, 2.2e9, 0.03, 0.27, 1, 0.02, 0.25},
  }};
  return shapes;
}

constexpr std::array<int64_t, 3> kLeastSteps = {4, 16, 40}, kMostSteps = {10, 28, 60};

SimulatedJob MakeJob(std::mt19937_64& random) {
  const int64_t kind = std::discrete_distribution<int64_t>({70, 20, 10})(random);
  SimulatedJob job;
  job.kind = kind;
  job.shape = &Shapes()[kind];
  job.steps = std::uniform_int_distribution<int64_t>(kLeastSteps[kind], kMostSteps[kind])(random);
  job.chunks = 1 + kind;
  return job;
}

double Stretch(Deadlines deadlines, std::mt19937_64& random) {
  if (deadlines == Deadlines::kThreefold) return 3;
  return std::uniform_real_distribution<double>(2, 8)(random);
}

// Where arrivals come in bursts, time stands still between them.
double InBursts(double seconds) {
  constexpr double kBurst = 120;
  return seconds / 2 + kBurst * std::floor(seconds / 2 / kBurst);
}

}  // namespace

std::vector<SimulatedJob> MakeTraffic(const Traffic& traffic) {
  std::mt19937_64 random(traffic.seed);
  std::vector<SimulatedJob> jobs;
  double work = 0;
  for (int64_t i = 0; i < traffic.jobs; ++i) {
    jobs.push_back(MakeJob(random));
    work += jobs.back().AloneSeconds();
  }
  const double between = work / static_cast<double>(traffic.jobs) / traffic.load;
  double now = 0;
  for (SimulatedJob& job : jobs) {
    now += std::exponential_distribution<double>(1 / between)(random);
    job.arrives = traffic.bursts ? InBursts(now) : now;
    if (traffic.deadlines == Deadlines::kNone) continue;
    job.deadline = job.arrives + Stretch(traffic.deadlines, random) * job.AloneSeconds();
  }
  return jobs;
}

}  // namespace denoised
