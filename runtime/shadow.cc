#include "runtime/shadow.h"

#include <algorithm>
#include <array>

namespace denoised {

std::string_view SigmaBand(std::optional<double> sigma) {
  constexpr std::array<std::string_view, 5> kBands = {"0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8",
                                                      "0.8-1"};
  if (!sigma) return "none";
  if (!(*sigma <= 1)) return "above 1";
  const double fifth = std::max(0.0, *sigma) * kBands.size();
  return kBands[std::min(kBands.size() - 1, static_cast<size_t>(fifth))];
}

}  // namespace denoised
