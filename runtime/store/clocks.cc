#include "runtime/store/clocks.h"

#include <time.h>

#include <fstream>

namespace denoised {
namespace {

std::string ReadBootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

}  // namespace

ClockReading ReadClocks() {
  static const std::string boot_id = ReadBootId();
  timespec time{};
  clock_gettime(CLOCK_BOOTTIME, &time);
  const std::chrono::nanoseconds since_boot =
      std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
  return {boot_id, std::chrono::duration_cast<std::chrono::microseconds>(since_boot),
          std::chrono::system_clock::now(), std::chrono::steady_clock::now()};
}

}  // namespace denoised
