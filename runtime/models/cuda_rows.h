// The rows of a DiT block on a CUDA device: norms, rotation and gated sums, one pass over memory
// each. Raw pointers in device memory, asynchronous on `stream`; errors are CUDA's own codes.
//
// A row's bits depend on the row alone. float32 inside; sums run over the threads of a block in a
// fixed order.
#ifndef DENOISED_RUNTIME_MODELS_CUDA_ROWS_H_
#define DENOISED_RUNTIME_MODELS_CUDA_ROWS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace denoised::cuda {

// [batch][tokens][width], contiguous; the width is even.
struct RowShape {
  int64_t batch = 0, tokens = 0;
  int width = 0;
};

// float32 companions of the rows: one a token, or one a batch row (token_stride 0). In elements.
struct Companion {
  const float* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0;
};

// (x - mean) / sqrt(variance + eps) * scale + shift; out is bfloat16 or float32.
cudaError_t LaunchNormModulate(const float* x, const Companion& scale, const Companion& shift,
                               float eps, const RowShape& shape, bool bfloat16, void* out,
                               cudaStream_t stream);

// Tables of a rotation by pairs; no rotation where cos is null.
struct Rotation {
  const float *cos = nullptr, *sin = nullptr;  // [tokens][head_size / 2]
  int head_size = 2;                           // even, divides the width
};

// x / sqrt(mean(x^2) + eps) * weight, rounded, then rotated, rounded. All of one dtype.
cudaError_t LaunchNormRms(const void* x, const void* weight, float eps, const RowShape& shape,
                          const Rotation& rotation, bool bfloat16, void* out, cudaStream_t stream);

// round(h + update * gate), and in `wide` the same numbers in float32 where that is not null. The
// gate is 1 where its data is null. h, update and out are of one dtype.
cudaError_t LaunchAddGated(const void* h, const void* update, const Companion& gate,
                           const RowShape& shape, bool bfloat16, void* out, float* wide,
                           cudaStream_t stream);

}  // namespace denoised::cuda

#endif  // DENOISED_RUNTIME_MODELS_CUDA_ROWS_H_
