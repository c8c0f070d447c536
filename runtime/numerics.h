// How the linear layers of a job multiply. Torch-free.
#ifndef DENOISED_RUNTIME_NUMERICS_H_
#define DENOISED_RUNTIME_NUMERICS_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace denoised {

enum class LinearNumerics : uint8_t {
  // Our packed matrix product and row kernels: a row's bits depend on nothing but itself, whatever
  // shares the call and on however many threads. Close to diffusers, not equal in every bit.
  kPacked,
  // LibTorch's operators in diffusers' order: its bits, where LibTorch gives one row the same bits
  // in
  // any company.
  kExact,
};
std::string_view LinearNumericsName(LinearNumerics numerics);  // "packed", "exact"
std::optional<LinearNumerics> LinearNumericsFromName(std::string_view name);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_NUMERICS_H_
