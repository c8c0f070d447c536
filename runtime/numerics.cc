#include "runtime/numerics.h"

namespace denoised {
namespace {

thread_local std::optional<LinearNumerics> current;

}  // namespace

std::string_view LinearNumericsName(LinearNumerics numerics) {
  switch (numerics) {
    case LinearNumerics::kPacked:
      return "packed";
    case LinearNumerics::kExact:
      return "exact";
    case LinearNumerics::kInt8:
      return "int8";
  }
  return "";
}

const std::vector<LinearNumerics>& AllLinearNumerics() {
  static const auto* const all = new std::vector<LinearNumerics>{
      LinearNumerics::kPacked, LinearNumerics::kExact, LinearNumerics::kInt8};
  return *all;
}

std::optional<LinearNumerics> LinearNumericsFromName(std::string_view name) {
  for (const LinearNumerics numerics : AllLinearNumerics()) {
    if (LinearNumericsName(numerics) == name) return numerics;
  }
  return std::nullopt;
}

std::string LinearNumericsNames(const std::vector<LinearNumerics>& numerics) {
  std::string names;
  for (const LinearNumerics one : numerics) {
    if (!names.empty()) names += ", ";
    names += LinearNumericsName(one);
  }
  return names;
}

ScopedLinearNumerics::ScopedLinearNumerics(LinearNumerics numerics) : before_(current) {
  current = numerics;
  if (numerics == LinearNumerics::kExact) threads_.emplace();
}

ScopedLinearNumerics::~ScopedLinearNumerics() { current = before_; }

LinearNumerics CurrentLinearNumerics(LinearNumerics otherwise) {
  return current.value_or(otherwise);
}

}  // namespace denoised
