// Tensors in, tensors out around the block-sparse kernels: what FLASH_ATTN (on the CPU) and the
// sparse backends share.
#ifndef DENOISED_BACKENDS_BLOCK_SPARSE_FORWARD_H_
#define DENOISED_BACKENDS_BLOCK_SPARSE_FORWARD_H_

#include <ATen/ATen.h>

#include <optional>
#include <string>

#include "backends/admission.h"
#include "backends/attention_backend.h"
#include "backends/kernels/bands.h"
#include "backends/kernels/block_sparse.h"

namespace denoised {

// What the CPU kernel takes: float32, bfloat16 and (through float32) float16, head sizes to 256.
std::optional<std::string> CpuKernelLimits(const AttentionSpec& spec, const DeviceInfo& device);

// Of the device's kernel: CpuKernelLimits, or CudaKernelLimits of cuda/block_sparse_launch.h.
std::optional<std::string> KernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                        Admission admission);

// What its int8 kernel takes: on the CPU the same, on CUDA no float32.
std::optional<std::string> Int8KernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                            Admission admission);

// Attention of checked inputs over the plan's blocks, by the kernel of their device. On the CPU it
// honours mask and causal of `inputs`; the CUDA kernel has neither, see CudaKernelLimits.
// Fresh contiguous [B, S_q, H, D] of the inputs' dtype. `isa`: empty = the best exact one of this
// CPU; CUDA has no choice. `last_key_count`: BlockSparseCall's, on the CPU.
at::Tensor BlockSparseForward(const AttentionInputs& inputs, const kernels::BlockPlan& plan,
                              std::optional<kernels::Isa> isa = std::nullopt,
                              int64_t last_key_count = 1);

// The same with q k^T in int8 (SageAttention, arXiv 2410.02367): on the CPU by the widest
// instructions that it has, on CUDA by cuda/block_sparse_int8_cuda.h. See Int8KernelLimits.
at::Tensor BlockSparseForwardInt8(const AttentionInputs& inputs, const kernels::BlockPlan& plan);

// Attention of checked CPU inputs without mask, not causal, over bands that are made while it runs;
// with q k^T in int8 where asked.
enum class BandScores : uint8_t { kExact, kInt8 };
at::Tensor BandForward(const AttentionInputs& inputs, const kernels::BandMaker& bands,
                       BandScores scores = BandScores::kExact);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_BLOCK_SPARSE_FORWARD_H_
