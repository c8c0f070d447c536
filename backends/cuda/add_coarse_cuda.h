// A branch known per block of tokens, gated and added to one known per token. Raw pointers.
#ifndef DENOISED_BACKENDS_CUDA_ADD_COARSE_CUDA_H_
#define DENOISED_BACKENDS_CUDA_ADD_COARSE_CUDA_H_

#include "backends/cuda/block_means_cuda.h"

namespace denoised::cuda {

struct AddCoarseArgs {
  PooledElement element = PooledElement::kFloat32;  // of fine, gate and out
  const void* fine = nullptr;                       // [batch][tokens][heads][head_size]
  const void* gate = nullptr;                       // the same, or null: 1
  const float* coarse = nullptr;                    // [batch * heads][blocks][head_size]
  const int32_t* block_of_token = nullptr;          // [tokens]
  int32_t batch = 0, tokens = 0, heads = 0, head_size = 0, blocks = 0;
  void* out = nullptr;  // as fine
};

// out = fine + coarse * gate, in float32 (two roundings), rounded to the element.
cudaError_t LaunchAddCoarse(const AddCoarseArgs& args, cudaStream_t stream);

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_ADD_COARSE_CUDA_H_
