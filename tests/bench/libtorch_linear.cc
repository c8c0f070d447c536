#include "tests/bench/libtorch_linear.h"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "backends/cpu_isa.h"
#include "backends/intra_op.h"
#include "tests/bench/timing.h"

namespace denoised {
namespace {

// LibTorch registers both for its compiler and declares them in no header.
at::Tensor InBlocks(const at::Tensor& weight) {
  std::vector<c10::IValue> arguments = {weight, /*batch_size=*/c10::IValue()};
  c10::Dispatcher::singleton()
      .findSchemaOrThrow("mkldnn::_reorder_linear_weight", "")
      .callBoxed(&arguments);
  return arguments.front().toTensor();
}

at::Tensor BlockedLinear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  using Scalars = c10::List<std::optional<at::Scalar>>;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            std::string_view, Scalars, std::optional<std::string_view>)>();
  const std::optional<at::Tensor> b = bias.defined() ? std::optional(bias) : std::nullopt;
  return op.call(x, weight, b, "none", Scalars(), "");
}

bool CanBlock(const at::Tensor& weight) {
  const DeviceInfo cpu = QueryCpu();
  return weight.scalar_type() == at::kBFloat16 && (cpu.avx512_bf16 || cpu.amx_bf16);
}

}  // namespace

LibTorchLinear::LibTorchLinear(const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias)
    : weight_(weight.contiguous()), bias_(bias) {
  if (!CanBlock(weight_)) return;
  const at::Tensor in_blocks = InBlocks(weight_);
  double plain = INFINITY, blocked = INFINITY;
  for (int i = 0; i < 10; ++i) {
    blocked_ = in_blocks;
    blocked = std::min(blocked, SecondsOf([&] { (*this)(x); }));
    blocked_ = at::Tensor();
    plain = std::min(plain, SecondsOf([&] { (*this)(x); }));
  }
  if (blocked < plain) blocked_ = in_blocks;
}

at::Tensor LibTorchLinear::operator()(const at::Tensor& x) const {
  const ScopedLibTorchThreads threads;
  return blocked_.defined() ? BlockedLinear(x, blocked_, bias_) : at::linear(x, weight_, bias_);
}

}  // namespace denoised
