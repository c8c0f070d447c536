// Attention in float64 over the whole score matrix, in a handful of ATen calls: what every backend
// is compared with. Shares no code with backends/.
#ifndef DENOISED_TESTS_BACKENDS_ATTENTION_ORACLE_H_
#define DENOISED_TESTS_BACKENDS_ATTENTION_ORACLE_H_

#include <ATen/ATen.h>

#include "backends/attention_backend.h"

namespace denoised {

// [B, S_q, H, D] float64. `inputs.mask` must be bool or float and broadcastable to [B, H, S_q,
// S_kv].
at::Tensor OracleAttention(const AttentionInputs& inputs);

// |a - b| / |b| over all elements, in float64.
double RelativeL2(const at::Tensor& a, const at::Tensor& b);
double CosineSimilarity(const at::Tensor& a, const at::Tensor& b);

// What RelativeL2 to float64 a backend of exact numerics may have in `dtype`. float32: 1e-5. With
// 16 bits up to three numbers are rounded to nearest: probabilities (where products take 16 bits),
// the output, and what a branch adds to it. Where mantissas m in [1, 2) are spread as the
// logarithm, one rounding is off by u / sqrt(3 E[m^2]) = 0.39 u of its number in the mean square, u
// being the unit roundoff (2^-8 for bfloat16, 2^-11 for float16); over values that are independent
// and of mean 0 it is the same share of sum p v. Three are 0.68 u; a tenth more for samples gives
// 3/4 u on any CPU. An output that is cut off instead of rounded is off by 0.78 u.
double ExactTolerance(at::ScalarType dtype);

// Same dtype, shape and bits.
bool SameBits(const at::Tensor& a, const at::Tensor& b);

}  // namespace denoised

#endif  // DENOISED_TESTS_BACKENDS_ATTENTION_ORACLE_H_
