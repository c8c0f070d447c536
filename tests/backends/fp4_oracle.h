// FP4 attention written out in float64, a tensor at a time: what kernels/fp4.h is compared with.
// Shares no code with backends/.
#ifndef DENOISED_TESTS_BACKENDS_FP4_ORACLE_H_
#define DENOISED_TESTS_BACKENDS_FP4_ORACLE_H_

#include <ATen/ATen.h>

#include "backends/attention_backend.h"

namespace denoised {

// x (float64) in NVFP4 and back, groups of 16 along the last axis: the nearest entry of tables that
// list every value of E4M3 and E2M1; a tie goes to the even mantissa. Finite numbers only.
at::Tensor Nvfp4ByTable(const at::Tensor& x);

// [B, S_q, H, D] float64, with N() for Nvfp4ByTable along the axis that the product sums over:
//   QAT:   P = exp(S - max S), S = N(Q) N(K)^T scale, O = N(P) N(V) / sum P
//   Sage3: S = (N(Q - q) N(K - k)^T + q (K - k)^T) scale, where q is the mean of each 128 queries
//          and k that of all keys; N(P) becomes N(P / t) t, t = max P / (448 * 6), a row at a time
// (SageAttention3, arXiv 2505.11594, equations 2 to 5). No masks.
at::Tensor OracleFp4Attention(const AttentionInputs& inputs, bool smooth);

}  // namespace denoised

#endif  // DENOISED_TESTS_BACKENDS_FP4_ORACLE_H_
