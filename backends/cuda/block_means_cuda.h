// Means of blocks of tokens on a CUDA device: kernels::BlockMeans of every head at once. Raw
// pointers.
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_MEANS_CUDA_H_
#define DENOISED_BACKENDS_CUDA_BLOCK_MEANS_CUDA_H_

#include "backends/cuda/block_sparse_cuda.h"

namespace denoised::cuda {

enum class PooledElement : uint8_t { kFloat32, kBFloat16, kFloat16 };

struct BlockMeansArgs {
  DeviceView view;
  PooledElement element = PooledElement::kFloat32;
  int32_t batch = 0, heads = 0, head_size = 0, blocks = 0;
  const int32_t* order = nullptr;  // token at each position, on the device
  const int32_t* begin = nullptr;  // [blocks + 1] positions, on the device
  float* means = nullptr;          // [batch * heads][blocks][head_size]
};

// Sums in float32 in the order given and divides, as the host does: the same bits.
cudaError_t LaunchBlockMeans(const BlockMeansArgs& args, cudaStream_t stream);

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_MEANS_CUDA_H_
