// The clocks by which a stored moment is found again. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_CLOCKS_H_
#define DENOISED_RUNTIME_STORE_CLOCKS_H_

#include <chrono>
#include <string>

namespace denoised {

// One moment on all of them.
struct ClockReading {
  // Of this boot of the machine; "" where the system does not say, which is no boot's.
  std::string boot_id;
  // Since that boot, sleep included (CLOCK_BOOTTIME); nobody sets it.
  std::chrono::microseconds since_boot{0};
  std::chrono::system_clock::time_point wall;
  std::chrono::steady_clock::time_point steady;  // of this process
};

ClockReading ReadClocks();

// A moment that has been, on the clocks that outlive a process.
struct PastMoment {
  std::string boot_id;
  std::chrono::microseconds since_boot{0};
  std::chrono::system_clock::time_point wall;
};

PastMoment MomentOf(const ClockReading& now);
// How long ago it was, never below 0: in the boot in which it was by that boot's own clock,
// whatever became of the time of day; after another boot by the time of day, which is all that is
// left then. 0 where that clock had not been set yet.
std::chrono::microseconds AgeOf(const PastMoment& moment, const ClockReading& now);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_CLOCKS_H_
