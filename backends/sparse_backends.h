// The sparse backends by name. What each attends, with the paper; parameters are in README.md.
#ifndef DENOISED_BACKENDS_SPARSE_BACKENDS_H_
#define DENOISED_BACKENDS_SPARSE_BACKENDS_H_

#include "backends/sparse_backend.h"

namespace denoised {

// VIDEO_SPARSE_ATTN (VSA, arXiv 2505.13389). Tiles of the grid; means of tiles score each other;
// each query tile attends its top-k key tiles. The coarse branch (softmax over all tile means) is
// added, times the learned gate: on where spec.has_gate, without a gate tensor as it is.
class VideoSparseBackend final : public SparseBackend {
 public:
  using SparseBackend::SparseBackend;
  AttnBackend id() const override { return AttnBackend::kVideoSparseAttn; }
  std::string_view summary() const override { return "VSA: top-k tiles and a gated coarse branch"; }
  std::shared_ptr<SparseSetting> ReadSetting(Parameters& parameters,
                                             const MetadataRequest& request) const override;
  PlanSize SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const override;
  std::string Note(const AttentionSpec& spec, const AttentionMetadata* metadata) const override;

 protected:
  std::optional<std::string> GeometryLimits(const AttentionSpec& spec) const override {
    return NeedsGrid(spec);
  }
  std::unique_ptr<SparseBands> MakeBands(const SparseCall& call) const override;
  at::Tensor Compute(const SparseCall& call) const override;
  at::Tensor MakeBranch(const SparseCall& call) const override;
  int64_t BranchBytes(const SparseSetting& setting, const AttentionSpec& spec,
                      int64_t rows) const override;

 private:
  at::Tensor ComputeOnDevice(const SparseCall& call) const;
};

// SLIDING_TILE_ATTN (STA, arXiv 2502.04507). Each query tile attends a window of tiles around it,
// shifted inward at the borders; text tokens after the grid are attended by all and attend all.
class SlidingTileBackend final : public SparseBackend {
 public:
  using SparseBackend::SparseBackend;
  AttnBackend id() const override { return AttnBackend::kSlidingTileAttn; }
  std::string_view summary() const override { return "STA: a window of tiles around each tile"; }
  std::shared_ptr<SparseSetting> ReadSetting(Parameters& parameters,
                                             const MetadataRequest& request) const override;
  PlanSize SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const override;
  void MakeOnce(SparseSetting* setting) const override;

 protected:
  std::optional<std::string> GeometryLimits(const AttentionSpec& spec) const override;
  std::unique_ptr<SparseBands> MakeBands(const SparseCall& call) const override;
  std::optional<DevicePlan> PlanOnDevice(const SparseCall& call) const override;
};

// VMOBA_ATTN (VMoBA, arXiv 2506.23858). Chunks of keys; each query attends its own chunk and those
// whose mean key it scores highest. Chunk shapes cycle over the layers.
class VmobaBackend final : public SparseBackend {
 public:
  using SparseBackend::SparseBackend;
  AttnBackend id() const override { return AttnBackend::kVmobaAttn; }
  std::string_view summary() const override { return "VMoBA: chunks of keys chosen by each query"; }
  std::shared_ptr<SparseSetting> ReadSetting(Parameters& parameters,
                                             const MetadataRequest& request) const override;
  PlanSize SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const override;

 protected:
  bool ReadsTokens() const override { return true; }
  bool MasksOnHost() const override { return true; }
  std::optional<std::string> GeometryLimits(const AttentionSpec& spec) const override {
    return NeedsGrid(spec);
  }
  std::unique_ptr<SparseBands> MakeBands(const SparseCall& call) const override;
};

// SLA_ATTN (SLA, arXiv 2509.24006). Top key blocks by means, plus a linear-attention branch through
// a learned projection where the checkpoint has one.
class SlaBackend : public SparseBackend {
 public:
  using SparseBackend::SparseBackend;
  AttnBackend id() const override { return AttnBackend::kSlaAttn; }
  std::string_view summary() const override { return "SLA: top key blocks and a linear branch"; }
  std::shared_ptr<SparseSetting> ReadSetting(Parameters& parameters,
                                             const MetadataRequest& request) const override;
  PlanSize SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const override;
  std::string Note(const AttentionSpec& spec, const AttentionMetadata* metadata) const override;

 protected:
  virtual double DefaultRatio() const { return 0.1; }
  std::unique_ptr<SparseBands> MakeBands(const SparseCall& call) const override;
  std::optional<DevicePlan> PlanOnDevice(const SparseCall& call) const override;
  at::Tensor MakeBranch(const SparseCall& call) const override;
  int64_t BranchBytes(const SparseSetting& setting, const AttentionSpec& spec,
                      int64_t rows) const override;
};

// BSA_ATTN (arXiv 2509.01085). Per tile, the queries most like its centre are dropped and copy the
// output of a neighbour; key tiles are kept up to a share of the probability mass.
class BsaBackend final : public SparseBackend {
 public:
  using SparseBackend::SparseBackend;
  AttnBackend id() const override { return AttnBackend::kBsaAttn; }
  std::string_view summary() const override { return "BSA: fewer queries a tile, top-p key tiles"; }
  std::shared_ptr<SparseSetting> ReadSetting(Parameters& parameters,
                                             const MetadataRequest& request) const override;
  PlanSize SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const override;

 protected:
  bool ReadsTokens() const override { return true; }
  bool MasksOnHost() const override { return true; }
  std::optional<std::string> GeometryLimits(const AttentionSpec& spec) const override {
    return NeedsGrid(spec);
  }
  std::unique_ptr<SparseBands> MakeBands(const SparseCall& call) const override;
};

// NABLA_ATTN (arXiv 2507.13546). 8x8 tiles of a frame; key tiles are kept down to a share of the
// probability mass, together with a window around the query's tile.
class NablaBackend final : public SparseBackend {
 public:
  using SparseBackend::SparseBackend;
  AttnBackend id() const override { return AttnBackend::kNablaAttn; }
  std::string_view summary() const override { return "NABLA: top-p tiles and a window"; }
  std::shared_ptr<SparseSetting> ReadSetting(Parameters& parameters,
                                             const MetadataRequest& request) const override;
  PlanSize SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const override;

 protected:
  std::optional<std::string> GeometryLimits(const AttentionSpec& spec) const override {
    return NeedsGrid(spec);
  }
  bool MasksOnHost() const override { return true; }
  std::unique_ptr<SparseBands> MakeBands(const SparseCall& call) const override;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_SPARSE_BACKENDS_H_
