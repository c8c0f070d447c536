#include "runtime/store/moment_row.h"

#include <algorithm>

namespace denoised::stored {

using std::chrono::duration_cast;
using std::chrono::microseconds;

Json WriteEnd(std::chrono::steady_clock::time_point end, const ClockReading& now) {
  const auto left = duration_cast<microseconds>(end - now.steady);
  return {{"boot", now.boot_id},
          {"since_boot", (now.since_boot + left).count()},
          {"wall", ToMicros(now.wall) + left.count()},
          {"left", left.count()}};
}

microseconds ReadLeft(const Json& end, const ClockReading& now) {
  const bool same_boot = !now.boot_id.empty() && end.at("boot").get<std::string>() == now.boot_id;
  const microseconds left = same_boot
                                ? ReadMicros(end.at("since_boot")) - now.since_boot
                                : ReadMicros(end.at("wall")) - microseconds(ToMicros(now.wall));
  return std::min(left, ReadMicros(end.at("left")));
}

Json WritePast(const PastMoment& moment) {
  return {{"boot", moment.boot_id},
          {"since_boot", moment.since_boot.count()},
          {"wall", ToMicros(moment.wall)}};
}

PastMoment ReadPast(const Json& json) {
  return {json.at("boot").get<std::string>(), ReadMicros(json.at("since_boot")),
          ReadMoment(json.at("wall"))};
}

}  // namespace denoised::stored
