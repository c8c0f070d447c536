#include "runtime/attention_guard.h"

#include <algorithm>
#include <array>

namespace denoised {
namespace {

// In the enums' order.
constexpr std::array<std::string_view, 3> kFaultNames = {"throw", "stall", "nan"};
constexpr std::array<std::string_view, 3> kStateNames = {"closed", "half_open", "open"};

}  // namespace

std::string_view FaultName(Fault fault) { return kFaultNames.at(static_cast<size_t>(fault)); }

std::optional<Fault> FaultFromName(std::string_view name) {
  const auto found = std::ranges::find(kFaultNames, name);
  if (found == kFaultNames.end()) return std::nullopt;
  return static_cast<Fault>(found - kFaultNames.begin());
}

std::string_view BreakerStateName(BreakerState state) {
  return kStateNames.at(static_cast<size_t>(state));
}

}  // namespace denoised
