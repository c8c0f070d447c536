#include "tests/backends/fp4_oracle.h"

#include <cmath>
#include <vector>

namespace denoised {
namespace {

constexpr int64_t kGroup = 16, kQueryBlock = 128;
constexpr double kLargestE4m3 = 448, kLargestE2m1 = 6;

// Every non-negative value in the order of its code: subnormals in steps of 2^-9, then 3 bits of
// mantissa.
const at::Tensor& E4m3Values() {
  static const at::Tensor values = [] {
    std::vector<double> all;
    for (int mantissa = 0; mantissa < 8; ++mantissa) all.push_back(std::ldexp(mantissa, -9));
    for (int exponent = -6; exponent <= 8; ++exponent) {
      for (int mantissa = 0; mantissa < 8; ++mantissa) {
        const double value = std::ldexp(1.0 + mantissa / 8.0, exponent);
        if (value <= kLargestE4m3) all.push_back(value);
      }
    }
    return at::tensor(all, at::kDouble);
  }();
  return values;
}

const at::Tensor& E2m1Values() {
  static const at::Tensor values =
      at::tensor({0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}, at::kDouble);
  return values;
}

// Of x >= 0. An even index is an even mantissa.
at::Tensor Nearest(const at::Tensor& table, const at::Tensor& x) {
  const int64_t last = table.size(0) - 1;
  const at::Tensor middles = (table.narrow(0, 0, last) + table.narrow(0, 1, last)) / 2;
  const at::Tensor below = at::bucketize(x, middles, false, /*right=*/false);
  const at::Tensor above = at::bucketize(x, middles, false, /*right=*/true);
  return table.take(at::where(below.remainder(2).eq(0), below, above));
}

at::Tensor HeadsFirst(const at::Tensor& x) { return x.to(at::kDouble).permute({0, 2, 1, 3}); }

// Each query's block has the mean of its own rows.
at::Tensor BlockMeans(const at::Tensor& query) {
  std::vector<at::Tensor> means;
  for (const at::Tensor& block : query.split(kQueryBlock, 2)) {
    means.push_back(block.mean(2, /*keepdim=*/true).expand_as(block));
  }
  return at::cat(means, 2);
}

}  // namespace

at::Tensor Nvfp4ByTable(const at::Tensor& x) {
  const int64_t size = x.size(-1), padding = (kGroup - size % kGroup) % kGroup;
  const at::Tensor groups = at::constant_pad_nd(x, {0, padding}).unflatten(-1, {-1, kGroup});
  const at::Tensor most = groups.abs().amax(-1, /*keepdim=*/true);
  // The scale is a float32 before it becomes E4M3.
  const at::Tensor wide = (most / kLargestE2m1).to(at::kFloat).to(at::kDouble);
  const at::Tensor scale = Nearest(E4m3Values(), wide);
  const at::Tensor small = groups / at::where(scale.eq(0), 1.0, scale);
  const at::Tensor rounded = Nearest(E2m1Values(), small.abs()) * small.sign() * scale;
  return rounded.flatten(-2).narrow(-1, 0, size);
}

at::Tensor OracleFp4Attention(const AttentionInputs& inputs, bool smooth) {
  at::Tensor query = HeadsFirst(inputs.query), key = HeadsFirst(inputs.key);
  const at::Tensor mean = smooth ? BlockMeans(query) : at::zeros_like(query);
  query = query - mean;
  if (smooth) key = key - key.mean(2, /*keepdim=*/true);
  const at::Tensor scores = at::matmul(Nvfp4ByTable(query), Nvfp4ByTable(key).transpose(2, 3)) +
                            at::matmul(mean, key.transpose(2, 3));
  const at::Tensor scaled = scores * inputs.scale;
  const at::Tensor p = (scaled - scaled.amax(-1, /*keepdim=*/true)).exp();
  const at::Tensor unit =
      smooth ? p.amax(-1, true) / (kLargestE4m3 * kLargestE2m1) : at::ones({1}, at::kDouble);
  const at::Tensor value = Nvfp4ByTable(HeadsFirst(inputs.value).transpose(2, 3)).transpose(2, 3);
  const at::Tensor sums = at::matmul(Nvfp4ByTable(p / unit) * unit, value);
  return (sums / p.sum(-1, /*keepdim=*/true)).permute({0, 2, 1, 3});
}

}  // namespace denoised
