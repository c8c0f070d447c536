// The backends that compute plain softmax attention: softmax(scale * q k^T + mask) v.
#ifndef DENOISED_BACKENDS_DENSE_BACKENDS_H_
#define DENOISED_BACKENDS_DENSE_BACKENDS_H_

#include "backends/admission.h"
#include "backends/attention_backend.h"

namespace denoised {

// REFERENCE: the formula written out, one block of queries at a time. float32 and half inputs
// accumulate in float64 (CPU) or float32 (CUDA half). The oracle of the contract suite: any head
// size, dtype, mask, causal. A query row that may attend to nothing gives zeros. What is not finite
// reaches the rows that attend it and no other.
class ReferenceBackend final : public AttentionBackend {
 public:
  AttnBackend id() const override { return AttnBackend::kReference; }
  std::string_view summary() const override { return "softmax written out; exact and slow"; }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                         int64_t rows) const override;
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override;
};

// TORCH_SDPA: at::scaled_dot_product_attention on [B, H, S, D] views, as diffusers' native backend
// calls it, so that results are the same bits. On the CPU a row of the batch that holds what is not
// finite, where pairs are hidden or keys have 16 bits, is computed as REFERENCE does or, where
// nothing is hidden, in float32: LibTorch would spread or lose it. On CUDA, where to look would be
// to wait, LibTorch's call is all there is.
class TorchSdpaBackend final : public AttentionBackend {
 public:
  AttnBackend id() const override { return AttnBackend::kTorchSdpa; }
  std::string_view summary() const override { return "LibTorch's scaled_dot_product_attention"; }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                         int64_t rows) const override;
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override;
};

// FLASH_ATTN: the CPU kernel of kernels/block_sparse.h; on CUDA LibTorch's FlashAttention-2, or
// where installed and fit (cuda/flash3.h) FlashAttention-3. No mask on CUDA; a causal
// call wants as many queries as keys there, since the kernels count from the last key and LibTorch
// from the first.
class FlashAttnBackend final : public AttentionBackend {
 public:
  AttnBackend id() const override { return AttnBackend::kFlashAttn; }
  std::string_view summary() const override;  // says which kernel a CUDA device would get
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                         int64_t rows) const override;
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override;
};

// NO_ATTENTION: FastVideo declares the name and no platform accepts it. Always refuses.
class NoAttentionBackend final : public AttentionBackend {
 public:
  AttnBackend id() const override { return AttnBackend::kNoAttention; }
  std::string_view summary() const override { return "a name that never serves a layer"; }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                         int64_t rows) const override;
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_DENSE_BACKENDS_H_
