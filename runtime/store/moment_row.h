// Moments as rows keep them, for processes and boots to come. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_MOMENT_ROW_H_
#define DENOISED_RUNTIME_STORE_MOMENT_ROW_H_

#include <chrono>

#include "runtime/store/clocks.h"
#include "runtime/store/json_fields.h"

namespace denoised::stored {

// One that is to come, on every clock, and how far away it is.
Json WriteEnd(std::chrono::steady_clock::time_point end, const ClockReading& now);
// What is left of it, not above 0 where it has passed: in the same boot by the machine's own clock,
// after another one by the time of day, and never more than was left when it was written.
std::chrono::microseconds ReadLeft(const Json& end, const ClockReading& now);

Json WritePast(const PastMoment& moment);
PastMoment ReadPast(const Json& json);

}  // namespace denoised::stored

#endif  // DENOISED_RUNTIME_STORE_MOMENT_ROW_H_
