// The block-sparse flash attention of kernels/block_sparse.h for CUDA devices. Raw pointers: what
// launches it (block_sparse_launch.cc) sees ATen, the kernels do not.
//
// One thread block a (batch, head, query block) walks the key blocks of its list with an online
// softmax in base 2 (FlashAttention-2, arXiv 2307.08691). A row's bits depend on its own query, its
// keys and its list only. A query row without any key gives zeros; queries in no block are not
// written.
//
// Errors come back as CUDA's own code; the launch is asynchronous on `stream`, and plan and tensors
// must live until it ends there (LibTorch's allocator sees to that for tensors freed in stream
// order).
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_CUDA_H_
#define DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backends/kernels/flat_plan.h"

namespace denoised::cuda {

inline constexpr int kMaxHeadSize = 128;

// [B, S, H, D] in device memory, D contiguous; strides in elements.
struct DeviceView {
  const void* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
};

struct BlockSparseArgs {
  int32_t batch = 0, heads = 0, head_size = 0, q_len = 0;
  DeviceView query, key, value;
  void* out = nullptr;         // [B, S_q, H, D] contiguous, of the inputs' dtype
  float scale = 1;             // > 0
  kernels::FlatPlanView plan;  // in device memory
};

// bfloat16 (or float16) on tensor cores, sums in float32. Head sizes that are multiples of 8 up to
// kMaxHeadSize; data 16-byte aligned, strides multiples of 8 elements. Compute capability 8.0 up.
cudaError_t LaunchBlockSparseHalf(const BlockSparseArgs& args, bool bfloat16, cudaStream_t stream);

// The same through wgmma. Compute capability 9.0 only; head sizes up to 64 gain nothing here.
cudaError_t LaunchBlockSparseHopper(const BlockSparseArgs& args, bool bfloat16,
                                    cudaStream_t stream);

// float32 throughout, no tensor cores: exact and slow. Any head size up to kMaxHeadSize.
cudaError_t LaunchBlockSparseFloat(const BlockSparseArgs& args, cudaStream_t stream);

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_CUDA_H_
