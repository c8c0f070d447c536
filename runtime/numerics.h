// How the linear layers, norms and activations of a job compute. Torch-free.
//
// A model keeps its weights in the form that one of these likes best; a job may ask for another,
// which then costs a conversion a layer and call (int8: one a layer, kept), and nothing of the
// result's bits. What is kept in int8 serves int8 alone.
#ifndef DENOISED_RUNTIME_NUMERICS_H_
#define DENOISED_RUNTIME_NUMERICS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/intra_op.h"

namespace denoised {

enum class LinearNumerics : uint8_t {
  // Our packed matrix product and row kernels: a row's bits depend on nothing but itself, whatever
  // shares the call and on however many threads. Close to diffusers, not equal in every bit.
  // CPU, float32 and bfloat16.
  kPacked,
  // LibTorch's operators in diffusers' order: its bits, on as many threads. Its products do not
  // promise a row the same bits in any company, so what shares a forward has products of its own.
  kExact,
  // As packed, but the layers that hold most weights and bear it multiply bytes: each row of what
  // comes in and each output column of the weights rounded to 8 bits of its largest magnitude, sums
  // exact (W8A8). The fastest, and coarser: on request.
  kInt8,
};
std::string_view LinearNumericsName(LinearNumerics numerics);  // "packed", "exact", "int8"
std::optional<LinearNumerics> LinearNumericsFromName(std::string_view name);
// "packed, exact, int8": every name, or those of `numerics`.
std::string LinearNumericsNames(const std::vector<LinearNumerics>& numerics);
const std::vector<LinearNumerics>& AllLinearNumerics();

// What a request asks for. Unset: the model's default.
struct NumericsOptions {
  std::optional<LinearNumerics> linear;
};

// While one lives, the layers that this thread runs compute so, and exact ones are LibTorch's on
// LibTorch's threads (backends/intra_op.h). They nest.
class ScopedLinearNumerics {
 public:
  explicit ScopedLinearNumerics(LinearNumerics numerics);
  ~ScopedLinearNumerics();
  ScopedLinearNumerics(const ScopedLinearNumerics&) = delete;
  ScopedLinearNumerics& operator=(const ScopedLinearNumerics&) = delete;

 private:
  const std::optional<LinearNumerics> before_;
  std::optional<ScopedLibTorchThreads> threads_;
};

// The innermost scope's of this thread; `otherwise` outside of any.
LinearNumerics CurrentLinearNumerics(LinearNumerics otherwise);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_NUMERICS_H_
