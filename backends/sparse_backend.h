// What the sparse backends share: parameters and geometry read once per step, dense first steps and
// layers, a choice of blocks each, and the block-sparse kernels underneath.
#ifndef DENOISED_BACKENDS_SPARSE_BACKEND_H_
#define DENOISED_BACKENDS_SPARSE_BACKEND_H_

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/admission.h"
#include "backends/attention_backend.h"
#include "backends/block_sparse_forward.h"
#include "backends/cuda/block_sparse_launch.h"
#include "backends/kernels/block_sparse.h"
#include "backends/kernels/pool.h"
#include "backends/parameters.h"
#include "backends/per_device.h"
#include "backends/sparse_bands.h"
#include "backends/tiling.h"

namespace denoised {

// A backend's parameters and geometry for one spec. Derived by each backend; immutable once made.
struct SparseSetting {
  virtual ~SparseSetting() = default;
  std::string canonical;  // the parameters, see AttentionMetadataBuilder::Canonical
  int64_t dense_first_steps = 0;
  std::vector<int64_t> dense_layers;

  // The first step that is like `step` in every call: dense, or with the same choice of blocks.
  virtual int64_t FirstLike(int64_t step) const {
    return step < dense_first_steps ? 0 : dense_first_steps;
  }
};

struct SparseMetadata final : AttentionMetadata {
  std::shared_ptr<const SparseSetting> setting;
  int64_t step_index = 0;
  bool DenseAt(int64_t layer_index) const;
};

// One checked call. Blocks are chosen on the host unless PlanOnDevice says otherwise. Of a CUDA
// call only the means of blocks come there (MeansOfHeads), or queries and keys as a whole where a
// choice looks at single tokens; both wait for the device.
struct SparseCall {
  AttentionInputs inputs;  // for the kernel, on the caller's device; float16 is float32 on the CPU
  at::Tensor host_query, host_key;  // OnHost of inputs'; undefined unless ReadsTokens
  const SparseSetting* setting = nullptr;
  int64_t step_index = 0;

  int64_t batch() const { return inputs.query.size(0); }
  int64_t tokens() const { return inputs.query.size(1); }
  int64_t heads() const { return inputs.query.size(2); }
  int64_t head_size() const { return inputs.query.size(3); }
  bool bfloat16() const { return inputs.query.scalar_type() == at::kBFloat16; }
  // Rows of one head of a tensor that OnHost made; `head` counts over batch * heads.
  kernels::HeadRows Rows(const at::Tensor& tensor, int64_t head) const;
};

// In host memory, D as neighbours, float16 as float32. The tensor itself where it is so already.
at::Tensor OnHost(const at::Tensor& tensor);

class SparseBackend : public AttentionBackend {
 public:
  explicit SparseBackend(Admission admission = Admission::kMeasured) : admission_(admission) {}
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;
  std::unique_ptr<AttentionMetadataBuilder> MakeBuilder() const override;
  // At dense steps and layers of a CPU call: FLASH_ATTN's, whose kernel and list of blocks it is.
  AttnBackend Runs(const AttentionInputs& inputs, const AttentionMetadata* metadata) const override;
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                         int64_t rows) const override;
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override;
  at::Tensor AttendedPairs(const AttentionInputs& inputs,
                           const AttentionMetadata* metadata) const override;
  at::Tensor AddedBranch(const AttentionInputs& inputs,
                         const AttentionMetadata* metadata) const override;

  // Reads the backend's own parameters; the shared ones and Finish() are the caller's.
  virtual std::shared_ptr<SparseSetting> ReadSetting(Parameters& parameters,
                                                     const MetadataRequest& request) const = 0;
  // How large a plan with it can become for calls of this spec; its lengths are known.
  virtual PlanSize SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const = 0;
  // What depends on the setting alone, made once a job, after its size has been checked.
  virtual void MakeOnce(SparseSetting* setting) const {}
  // Bytes of host memory that the choice of blocks takes in a CPU call of `rows` batch rows, and
  // what it keeps between calls; known before anything is made.
  int64_t PlanBytes(const AttentionSpec& spec, const SparseSetting& setting, int64_t rows) const {
    return denoised::PlanBytes(SizeOf(setting, spec), spec, rows);
  }

 protected:
  // Why the tokens of this spec cannot be cut; called with equal query and key lengths.
  virtual std::optional<std::string> GeometryLimits(const AttentionSpec& spec) const;
  // Whether the choice looks at single queries or keys (host_query, host_key), not at means alone.
  virtual bool ReadsTokens() const { return false; }
  // The choice of blocks, made band by band while the kernel runs; refers to the call.
  virtual std::unique_ptr<SparseBands> MakeBands(const SparseCall& call) const = 0;
  // Whether MakeBands needs the numbers of a CUDA call on the host.
  virtual bool MasksOnHost() const { return false; }
  // The same as a plan, made where the inputs are; none where it has to be made on the host.
  virtual std::optional<DevicePlan> PlanOnDevice(const SparseCall& call) const { return {}; }
  virtual BandScores scores() const { return BandScores::kExact; }
  // Attend and MakeBranch, added: float32 or the inputs' dtype.
  virtual at::Tensor Compute(const SparseCall& call) const;
  // Float32 [B, S_q, H, D] on the inputs' device, or undefined.
  virtual at::Tensor MakeBranch(const SparseCall& call) const { return {}; }
  // Bytes that a branch takes beside the rest, in a call of this spec and `rows` batch rows.
  virtual int64_t BranchBytes(const SparseSetting& setting, const AttentionSpec& spec,
                              int64_t rows) const {
    return 0;
  }

  Admission admission() const { return admission_; }

  // GeometryLimits for backends whose tokens are a video grid and nothing else.
  static std::optional<std::string> NeedsGrid(const AttentionSpec& spec);

 private:
  SparseCall CallOf(const AttentionInputs& inputs, const AttentionMetadata* metadata) const;
  at::Tensor Attend(const SparseCall& call) const;
  // Of CUDA inputs: plans made from the bands on the host, of as many heads at once as is bounded.
  at::Tensor AttendByPlans(const SparseCall& call) const;

  const Admission admission_;
};

// "grid" of the parameters where the spec has none; refuses one that contradicts the spec.
Axes ReadGrid(Parameters& parameters, const AttentionSpec& spec);

// The `count` largest of scores[n] by rank, ties to the lowest index; ascending indices.
std::vector<int32_t> LargestIndices(const float* scores, int64_t n, int64_t count);

// Block means of every head of a tensor of the call: [batch * heads][blocks * head_size] float32,
// as kernels::BlockMeans. On CUDA they are made on the device, with the same bits.
std::vector<std::vector<float>> MeansOfHeads(const SparseCall& call, const at::Tensor& tensor,
                                             const Partition& blocks);

// Whether no block of the partition is longer than the kernel's.
bool FitsKernelBlocks(const Partition& partition);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_SPARSE_BACKEND_H_
