// A branch known per block of tokens, gated and added to one known per token: on the CPU what
// cuda/add_coarse_cuda.h is on a device, with the same bits.
#ifndef DENOISED_BACKENDS_KERNELS_ADD_COARSE_H_
#define DENOISED_BACKENDS_KERNELS_ADD_COARSE_H_

#include <cstdint>

#include "backends/kernels/block_sparse.h"

namespace denoised::kernels {

// One row of the batch.
struct AddCoarseCall {
  int64_t heads = 0, head_size = 0, blocks = 0;
  const float* coarse = nullptr;            // [heads][blocks][head_size]
  const int32_t* block_of_token = nullptr;  // [tokens]
  Element element = Element::kFloat32;      // of gate and out
  const void* gate = nullptr;               // rows of head_size, so many elements apart; null: 1
  int64_t gate_token_stride = 0, gate_head_stride = 0;
  void* out = nullptr;  // [tokens][heads][head_size]; holds the branch that is known per token
};

// out = out + coarse * gate for tokens begin .. end - 1, in float32 (two roundings), rounded to the
// element.
void AddCoarse(const AddCoarseCall& call, int64_t begin, int64_t end);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_ADD_COARSE_H_
