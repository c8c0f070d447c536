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

// Same dtype, shape and bits.
bool SameBits(const at::Tensor& a, const at::Tensor& b);

}  // namespace denoised

#endif  // DENOISED_TESTS_BACKENDS_ATTENTION_ORACLE_H_
