#include "runtime/store/clocks.h"

#include <time.h>

#include <algorithm>
#include <fstream>

namespace denoised {
namespace {

using std::chrono::microseconds;

// 2020: a clock that shows less begins at 1970, or where a firmware was made, and was not set.
constexpr std::chrono::system_clock::time_point kEarliest{std::chrono::seconds(1'577'836'800)};

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

PastMoment MomentOf(const ClockReading& now) { return {now.boot_id, now.since_boot, now.wall}; }

microseconds AgeOf(const PastMoment& moment, const ClockReading& now) {
  microseconds age{0};
  if (!now.boot_id.empty() && moment.boot_id == now.boot_id) {
    age = now.since_boot - moment.since_boot;
  } else if (moment.wall >= kEarliest) {
    age = std::chrono::duration_cast<microseconds>(now.wall - moment.wall);
  }
  return std::max(age, microseconds(0));
}

}  // namespace denoised
