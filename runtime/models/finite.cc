#include "runtime/models/finite.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>

#include "backends/intra_op.h"

namespace denoised {
namespace {

constexpr int64_t kGrain = 1 << 16;

// Of a number that is not finite all bits of the exponent are set.
template <typename Bits>
bool NoneFull(const void* data, int64_t count, Bits exponent) {
  const auto* const numbers = static_cast<const Bits*>(data);
  std::atomic<bool> none = true;
  ParallelFor(count, kGrain, [&](int64_t begin, int64_t end) {
    Bits most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = begin; i < end; ++i) {
      most = std::max<Bits>(most, static_cast<Bits>(numbers[i] & exponent));
    }
    if (most == exponent) none = false;
  });
  return none;
}

}  // namespace

bool AllFinite(const at::Tensor& x) {
  if (x.is_cpu() && x.is_contiguous()) {
    const void* const data = x.const_data_ptr();
    if (x.scalar_type() == at::kFloat) return NoneFull<uint32_t>(data, x.numel(), 0x7f800000);
    if (x.scalar_type() == at::kBFloat16) return NoneFull<uint16_t>(data, x.numel(), 0x7f80);
    if (x.scalar_type() == at::kHalf) return NoneFull<uint16_t>(data, x.numel(), 0x7c00);
  }
  return at::isfinite(x).all().item<bool>();
}

}  // namespace denoised
