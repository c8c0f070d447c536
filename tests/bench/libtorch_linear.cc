#include "tests/bench/libtorch_linear.h"

#include <algorithm>
#include <cmath>

#include "backends/cpu_isa.h"
#include "backends/intra_op.h"
#include "runtime/models/layers.h"
#include "tests/bench/timing.h"

namespace denoised {
namespace {

bool CanBlock(const at::Tensor& weight) {
  const DeviceInfo cpu = QueryCpu();
  return weight.scalar_type() == at::kBFloat16 && (cpu.avx512_bf16 || cpu.amx_bf16);
}

}  // namespace

LibTorchLinear::LibTorchLinear(const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias)
    : weight_(weight.contiguous()), bias_(bias) {
  if (!CanBlock(weight_)) return;
  const at::Tensor in_blocks = BlockLinearWeight(weight_);
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
  return blocked_.defined() ? RunBlockedLinear(x, blocked_, bias_) : at::linear(x, weight_, bias_);
}

}  // namespace denoised
