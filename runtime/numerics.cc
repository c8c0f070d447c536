#include "runtime/numerics.h"

namespace denoised {

std::string_view LinearNumericsName(LinearNumerics numerics) {
  return numerics == LinearNumerics::kExact ? "exact" : "packed";
}

std::optional<LinearNumerics> LinearNumericsFromName(std::string_view name) {
  for (const LinearNumerics numerics : {LinearNumerics::kPacked, LinearNumerics::kExact}) {
    if (LinearNumericsName(numerics) == name) return numerics;
  }
  return std::nullopt;
}

}  // namespace denoised
