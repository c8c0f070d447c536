// Choosing key blocks on a CUDA device: products of block means, and the largest of each row. Raw
// pointers, asynchronous on `stream`; both give what kernels/pool.h and LargestIndices give.
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_CHOICE_CUDA_H_
#define DENOISED_BACKENDS_CUDA_BLOCK_CHOICE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace denoised::cuda {

struct BlockScoresArgs {
  const float* queries = nullptr;  // [heads][query_blocks][head_size]
  const float* keys = nullptr;     // [heads][key_blocks][head_size]
  int32_t heads = 0, query_blocks = 0, key_blocks = 0, head_size = 0;
  float divisor = 1;        // of each product
  bool bfloat16 = false;    // round the product, and then the quotient
  float* scores = nullptr;  // [heads][query_blocks][key_blocks]
};

// Each product is summed as kernels::Dot does: the same bits. At most 65535 heads.
cudaError_t LaunchBlockScores(const BlockScoresArgs& args, cudaStream_t stream);

struct LargestArgs {
  const float* scores = nullptr;   // [heads][blocks][columns]
  const int32_t* block = nullptr;  // [rows]: whose scores a row of the answer is chosen by
  int32_t heads = 0, blocks = 0, rows = 0, columns = 0;
  int32_t count = 0;          // 1 <= count <= columns
  int32_t* chosen = nullptr;  // [heads][rows][count], ascending
};

// The `count` largest, ties to the lowest index, NaN as +inf.
cudaError_t LaunchLargest(const LargestArgs& args, cudaStream_t stream);

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_CHOICE_CUDA_H_
