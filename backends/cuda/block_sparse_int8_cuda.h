// Block-sparse attention whose scores come from int8 (SageAttention, arXiv 2410.02367): keys less
// their head's mean, one scale a token for queries and keys, q k^T in int32; softmax, probabilities
// and values as in block_sparse_cuda.h. Three steps on one stream: key means, int8 rows (queries,
// keys), attention. Raw pointers in device memory; errors are CUDA's own codes.
//
// Deterministic, and a row's bits depend on its own query, its head's keys and its list only.
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_INT8_CUDA_H_
#define DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_INT8_CUDA_H_

#include "backends/cuda/block_sparse_cuda.h"

namespace denoised::cuda {

// Bytes of an int8 row of so many elements: the rest is zeros.
constexpr int Int8RowBytes(int head_size) { return head_size <= 64 ? 64 : 128; }

inline constexpr int kSpanTokens = 256;  // summed by one thread block
constexpr int SpansOf(int length) { return (length + kSpanTokens - 1) / kSpanTokens; }

// bfloat16 (or float16) rows [B, S, H, D], D up to kMaxHeadSize.
struct HalfRows {
  DeviceView view;
  bool bfloat16 = true;
  int32_t batch = 0, heads = 0, head_size = 0, length = 0;
};

// mean[B * H][D] of the rows of each head, in float32; sums[B * H][SpansOf(length)][D] is scratch.
cudaError_t LaunchKeyMeans(const HalfRows& rows, float* sums, float* mean, cudaStream_t stream);

// Rows less mean[B * H][D] (null: nothing) by kernels/int8_rule.h: bytes[B * H][S][Int8RowBytes(D)]
// and scale[B * H][S]. D is even.
cudaError_t LaunchInt8Rows(const HalfRows& rows, const float* mean, int8_t* bytes, float* scale,
                           cudaStream_t stream);

struct BlockSparseInt8Args {
  // As LaunchBlockSparseHalf takes them, but query and key are bytes as above, seen as pairs: their
  // strides count two bytes.
  BlockSparseArgs call;
  const float* query_scale = nullptr;  // [B * H][S_q]
  const float* key_scale = nullptr;    // [B * H][S_kv]
  int32_t kv_len = 0;
};

// Values and output bfloat16 (or float16). Compute capability 8.0 up.
cudaError_t LaunchBlockSparseInt8(const BlockSparseInt8Args& args, bool bfloat16,
                                  cudaStream_t stream);

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_INT8_CUDA_H_
