// Tensors in, tensors out around kernels/block_sparse.h: what FLASH_ATTN and the sparse backends
// share on the CPU.
#ifndef DENOISED_BACKENDS_BLOCK_SPARSE_FORWARD_H_
#define DENOISED_BACKENDS_BLOCK_SPARSE_FORWARD_H_

#include <ATen/ATen.h>

#include <optional>
#include <string>

#include "backends/attention_backend.h"
#include "backends/kernels/block_sparse.h"

namespace denoised {

// What the CPU kernel takes: float32, bfloat16 and (through float32) float16, head sizes to 256.
std::optional<std::string> CpuKernelLimits(const AttentionSpec& spec, const DeviceInfo& device);

// Attention of checked CPU inputs over the plan's blocks; honours mask and causal of `inputs`.
// Fresh contiguous [B, S_q, H, D] of the inputs' dtype. `isa`: empty = the best exact one of this
// CPU.
at::Tensor BlockSparseForward(const AttentionInputs& inputs, const kernels::BlockPlan& plan,
                              std::optional<kernels::Isa> isa = std::nullopt);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_BLOCK_SPARSE_FORWARD_H_
