// Norms of a DiT block whose rows have their bits alone, and what modulates them: float32 inside,
// sums in eight lanes in a fixed order, one rounding at the end (NormRmsRotateRows: one more
// between its two parts). CPU, float32 and bfloat16; engine thread, parallel over rows, where
// nothing else is said. Used with packed numerics (runtime/numerics.h); ATen's norms may sum in
// another order where few rows share many threads. NormModulate and NormRms run on CUDA devices
// too, whatever the numerics: there they spare a block most of its trips to memory (cuda_rows.h).
#ifndef DENOISED_RUNTIME_MODELS_ROW_KERNELS_H_
#define DENOISED_RUNTIME_MODELS_ROW_KERNELS_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "runtime/models/linear_input.h"
#include "runtime/models/rope.h"

namespace denoised {

// layer_norm(x) * scale_plus_one + shift, in `dtype`. x [B, S, D] float32; scale_plus_one and shift
// float32 [B, 1 or S, D]; with an `index` (CPU only), int32 [B, 1 or S], both are [U, 1, D] and row
// (b, s) takes the one that its entry names. On a CPU rows are made when they are asked for, by any
// thread: x, scale_plus_one, shift and index keep their numbers until the last product is done.
LinearInput NormModulate(const at::Tensor& x, const at::Tensor& scale_plus_one,
                         const at::Tensor& shift, double eps, at::ScalarType dtype,
                         const at::Tensor& index = {});

// x / rms(x) * weight over the last axis; x [.., D], weight [D], both of x's dtype.
at::Tensor NormRms(const at::Tensor& x, const at::Tensor& weight, double eps);

// The same of rows first .. first + count of a dense x, in place, on the calling thread. CPU.
void NormRmsRows(const at::Tensor& x, const at::Tensor& weight, double eps, int64_t first,
                 int64_t count);

// The same over all heads of a token at once, then pairs rotated as Rotate does. x [B, S, H * Dh],
// cos and sin [S, Dh / 2].
void NormRmsRotateRows(const at::Tensor& x, const at::Tensor& weight, double eps,
                       const RopeTables& rope, int64_t heads, int64_t first, int64_t count);

// table + time, and 1 more in the parts that `scales` names: what modulates norms. table [1, P, D]
// float32, time [U, 1, P or 1, D]. Returns [U, 1, P, D] float32.
at::Tensor Modulation(const at::Tensor& table, const at::Tensor& time,
                      std::initializer_list<int64_t> scales);

// x * sigmoid(x).
at::Tensor Silu(const at::Tensor& x);

// The i-th is 10000^(-i / count), its exponent in float32 as the reference has it. Not by ATen's
// exp, which is MKL's on Intel's processors and has other bits on other levels.
std::vector<float> TimeFrequencies(int64_t count);

// cos and sin of time * frequency, side by side: [times, 2 frequencies] float32.
at::Tensor TimeFeatures(const std::vector<float>& times, const std::vector<float>& frequencies);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_ROW_KERNELS_H_
