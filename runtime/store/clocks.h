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

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_CLOCKS_H_
