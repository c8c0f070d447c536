// The clocks of a machine that a test sets, restarts and boots.
#ifndef DENOISED_TESTS_RUNTIME_MANUAL_CLOCKS_H_
#define DENOISED_TESTS_RUNTIME_MANUAL_CLOCKS_H_

#include <chrono>
#include <mutex>
#include <string>

#include "runtime/store/hooks.h"

namespace denoised {

// Any thread.
class ManualClocks : public StoreHooks {
 public:
  ClockReading Clocks(const ClockReading&) override { return now(); }
  ClockReading now() const {
    const std::lock_guard lock(mutex_);
    return now_;
  }

  void Pass(std::chrono::milliseconds time) {
    const std::lock_guard lock(mutex_);
    now_.since_boot += time;
    now_.wall += time;
    now_.steady += time;
  }
  // Somebody sets the time of day.
  void SetWallBy(std::chrono::milliseconds time) {
    const std::lock_guard lock(mutex_);
    now_.wall += time;
  }
  // Another process of the same boot: its steady clock is its own.
  void Restart() {
    const std::lock_guard lock(mutex_);
    now_.steady = std::chrono::steady_clock::time_point(std::chrono::hours(500));
  }
  void Reboot() {
    Restart();
    const std::lock_guard lock(mutex_);
    now_.boot_id += " and another";
    now_.since_boot = std::chrono::seconds(5);
  }

 private:
  mutable std::mutex mutex_;
  ClockReading now_ = {"a boot", std::chrono::hours(1000),
                       std::chrono::system_clock::time_point(std::chrono::hours(24 * 365 * 56)),
                       std::chrono::steady_clock::time_point(std::chrono::hours(700))};
};

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_MANUAL_CLOCKS_H_
