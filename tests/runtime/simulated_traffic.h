// Traffic for the simulated engine: shapes, mixes and arrivals as the performance rows want them.
#ifndef DENOISED_TESTS_RUNTIME_SIMULATED_TRAFFIC_H_
#define DENOISED_TESTS_RUNTIME_SIMULATED_TRAFFIC_H_

#include <cstdint>
#include <vector>

#include "tests/runtime/simulated_engine.h"

namespace denoised {

enum class Deadlines : uint8_t {
  kNone,
  kThreefold,   // three times what the job takes alone, from its arrival
  kTwoToEight,  // two to eight times
};

struct Traffic {
  int64_t jobs = 600;
  double load = 0.8;    // of what the device can do one by one
  bool bursts = false;  // two minutes at twice the rate, two at none, in turns
  Deadlines deadlines = Deadlines::kThreefold;
  uint64_t seed = 1;
};

// Kinds 0, 1, 2: short (a second), medium (4) and long (16) jobs, 70, 20 and 10 of 100, of Poisson
// arrivals. Their shapes live as long as the program.
std::vector<SimulatedJob> MakeTraffic(const Traffic& traffic);

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_SIMULATED_TRAFFIC_H_
