#include "backends/sparse_backend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "backends/attention_call.h"
#include "backends/block_sparse_forward.h"
#include "backends/cuda/block_sparse_launch.h"
#include "backends/dense_backends.h"
#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

// The backend's own parameters and the shared ones; refuses those whose plan would explode.
std::shared_ptr<SparseSetting> ReadAll(const SparseBackend& backend,
                                       const MetadataRequest& request) {
  Parameters parameters(request.parameters_json);
  auto setting = backend.ReadSetting(parameters, request);
  setting->dense_first_steps = parameters.Int("dense_first_steps", 0, 0, 1 << 20);
  setting->dense_layers = parameters.IntList("dense_layers", 0);
  const std::set<int64_t> layers(setting->dense_layers.begin(), setting->dense_layers.end());
  parameters.Settle("dense_layers", layers);  // a set: neither order nor repeats matter
  parameters.Finish();
  setting->canonical = parameters.Canonical();
  const AttentionSpec& spec = request.spec;
  if (spec.q_len > 0) CheckPlanSize(backend.SizeOf(*setting, spec), spec);
  return setting;
}

// Reads parameters once for as long as spec and parameters stay the same.
class SparseBuilder final : public AttentionMetadataBuilder {
 public:
  explicit SparseBuilder(const SparseBackend& backend) : backend_(backend) {}

  std::string Canonical(const MetadataRequest& request) override {
    return ReadAll(backend_, request)->canonical;
  }

  std::shared_ptr<const AttentionMetadata> Build(const MetadataRequest& request) override {
    auto metadata = std::make_shared<SparseMetadata>();
    metadata->setting = SettingFor(request);
    metadata->step_index = metadata->setting->FirstLike(request.step_index);
    return metadata;
  }

  std::optional<int64_t> StepKind(const MetadataRequest& request) override {
    return SettingFor(request)->FirstLike(request.step_index);
  }

 private:
  const std::shared_ptr<const SparseSetting>& SettingFor(const MetadataRequest& request) {
    if (!setting_ || !(spec_ == request.spec) || parameters_ != request.parameters_json) {
      auto setting = ReadAll(backend_, request);
      backend_.MakeOnce(setting.get());
      setting_ = std::move(setting);
      spec_ = request.spec;
      parameters_ = request.parameters_json;
    }
    return setting_;
  }

  const SparseBackend& backend_;
  std::shared_ptr<const SparseSetting> setting_;
  AttentionSpec spec_;
  std::string parameters_;
};

// Empty: the fastest exact one.
std::optional<HalfKernel> KernelOf(BandScores scores) {
  return scores == BandScores::kInt8 ? std::optional(HalfKernel::kInt8) : std::nullopt;
}

// Whether a dense step is FLASH_ATTN's.
bool IsFlash(const AttentionInputs& inputs) {
  const at::Tensor& query = inputs.query;
  return query.is_cpu() || (query.scalar_type() != at::kFloat && query.size(3) % 8 == 0);
}

std::string Text(const Axes& axes) {
  return std::to_string(axes[0]) + "x" + std::to_string(axes[1]) + "x" + std::to_string(axes[2]);
}

// Bytes of plans that are made on the host at once.
constexpr int64_t kMostPlanBytes = int64_t{64} << 20;

AttentionInputs OneHead(const AttentionInputs& inputs, int64_t head) {
  const int64_t heads = inputs.query.size(2);
  AttentionInputs one = inputs;
  for (at::Tensor* tensor : {&one.query, &one.key, &one.value}) {
    *tensor = tensor->narrow(0, head / heads, 1).narrow(2, head % heads, 1);
  }
  return one;
}

}  // namespace

bool SparseMetadata::DenseAt(int64_t layer_index) const {
  const auto& layers = setting->dense_layers;
  return step_index < setting->dense_first_steps ||
         std::find(layers.begin(), layers.end(), layer_index) != layers.end();
}

at::Tensor OnHost(const at::Tensor& tensor) {
  at::Tensor host = tensor.to(at::kCPU);
  if (host.scalar_type() == at::kHalf) host = host.to(at::kFloat);
  return HeadSizeInside(host);
}

kernels::HeadRows SparseCall::Rows(const at::Tensor& tensor, int64_t head) const {
  const kernels::View view{tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1),
                           tensor.stride(2)};
  const bool pairs = tensor.scalar_type() == at::kBFloat16;
  const auto element = pairs ? kernels::Element::kBFloat16 : kernels::Element::kFloat32;
  return kernels::HeadOf(view, element, head_size(), head / heads(), head % heads());
}

std::optional<std::string> SparseBackend::Supports(const AttentionSpec& spec,
                                                   const DeviceInfo& device) const {
  if (auto reason = KernelLimits(spec, device, admission_)) return reason;
  if (device.type == DeviceInfo::Type::kCuda && MasksOnHost() &&
      admission_ == Admission::kMeasured) {
    return "on CUDA its masks are made on the host, which takes longer than dense attention; "
           "--admit_unmeasured admits it";
  }
  if (spec.has_mask) return "it takes no attention mask";
  if (spec.causal) return "it is not causal";
  if (spec.q_len != spec.kv_len) {
    return "it wants as many queries as keys; got " + std::to_string(spec.q_len) + " and " +
           std::to_string(spec.kv_len);
  }
  return GeometryLimits(spec);
}

std::optional<std::string> SparseBackend::GeometryLimits(const AttentionSpec& spec) const {
  return std::nullopt;
}

std::optional<std::string> SparseBackend::NeedsGrid(const AttentionSpec& spec) {
  if (*std::min_element(spec.grid.begin(), spec.grid.end()) <= 0) {
    return "it wants a video grid (tokens along T, H and W); got none";
  }
  if (spec.q_len != 0 && Product(spec.grid) != spec.q_len) {
    return "it wants one token for each cell of the grid " + Text(spec.grid) + "; got " +
           std::to_string(spec.q_len) + " tokens";
  }
  return std::nullopt;
}

std::unique_ptr<AttentionMetadataBuilder> SparseBackend::MakeBuilder() const {
  return std::make_unique<SparseBuilder>(*this);
}

AttentionCost SparseBackend::Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                                      int64_t rows) const {
  const auto setting = ReadAll(*this, {0, 1, spec, parameters_json});
  const PlanSize size = SizeOf(*setting, spec);
  AttentionCost cost;
  cost.bytes = KernelBytes(spec, rows) + denoised::PlanBytes(size, spec, rows);
  cost.multiply_adds = MultiplyAddsOf(size, spec, rows);
  cost.bytes += BranchBytes(*setting, spec, rows);
  if (setting->dense_first_steps > 0 || !setting->dense_layers.empty()) {
    cost.multiply_adds = std::max(cost.multiply_adds, DenseMultiplyAdds(spec, rows));
  }
  return cost;
}

SparseCall SparseBackend::CallOf(const AttentionInputs& inputs,
                                 const AttentionMetadata* metadata) const {
  const auto* sparse = dynamic_cast<const SparseMetadata*>(metadata);
  if (sparse == nullptr) {
    throw Error(StatusCode::kFailedPrecondition,
                "wanted the metadata of " + std::string(AttnBackendName(id())) +
                    "'s builder; got " + (metadata == nullptr ? "none" : "another backend's"));
  }
  SparseCall call;
  call.inputs = inputs;
  call.setting = sparse->setting.get();
  call.step_index = sparse->step_index;
  if (inputs.query.is_cpu()) {
    AttentionInputs& in = call.inputs;
    for (at::Tensor* tensor : {&in.query, &in.key, &in.value}) *tensor = OnHost(*tensor);
  }
  if (ReadsTokens()) {
    call.host_query = OnHost(call.inputs.query);
    call.host_key = OnHost(call.inputs.key);
  }
  return call;
}

AttnBackend SparseBackend::Runs(const AttentionInputs& inputs,
                                const AttentionMetadata* metadata) const {
  const auto* sparse = dynamic_cast<const SparseMetadata*>(metadata);
  const bool dense = sparse != nullptr && sparse->DenseAt(inputs.layer_index);
  return dense && IsFlash(inputs) ? AttnBackend::kFlashAttn : id();
}

at::Tensor SparseBackend::Forward(const AttentionInputs& inputs,
                                  const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  const SparseCall call = CallOf(inputs, metadata);
  const bool dense = static_cast<const SparseMetadata*>(metadata)->DenseAt(inputs.layer_index);
  if (!dense) return Compute(call).to(inputs.query.scalar_type());
  if (IsFlash(inputs)) return FlashAttnBackend().Forward(inputs, nullptr);
  const int64_t tokens = inputs.query.size(1);
  return BlockSparseForwardCuda(inputs, DensePlanOnDevice(tokens, tokens, inputs.query.device()));
}

at::Tensor SparseBackend::Compute(const SparseCall& call) const {
  const at::Tensor out = Attend(call), branch = MakeBranch(call);
  return branch.defined() ? out.to(at::kFloat).add_(branch) : out;
}

at::Tensor SparseBackend::Attend(const SparseCall& call) const {
  if (!call.inputs.query.is_cuda()) {
    return BandForward(call.inputs, *MakeBands(call), scores());
  }
  const auto plan = PlanOnDevice(call);
  return plan ? BlockSparseForwardCuda(call.inputs, *plan, KernelOf(scores()))
              : AttendByPlans(call);
}

at::Tensor SparseBackend::AttendByPlans(const SparseCall& call) const {
  const auto bands = MakeBands(call);
  const int64_t all = call.batch() * call.heads();
  const auto attend = [&](const AttentionInputs& inputs, int64_t first, int64_t heads) {
    const DevicePlan plan = UploadPlan(PlanOfBands(*bands, first, heads), inputs.query.device());
    return BlockSparseForwardCuda(inputs, plan, KernelOf(scores()));
  };
  AttentionSpec spec;
  spec.q_len = spec.kv_len = call.tokens();
  const int64_t a_list = ListBytes(SizeOf(*call.setting, spec), spec);
  const bool apart = bands->common() == SparseBands::Common::kNothing;
  const bool alike = bands->common() == SparseBands::Common::kAll;
  if (alike || (!apart && a_list * all <= kMostPlanBytes)) return attend(call.inputs, 0, all);
  at::Tensor out = at::empty(call.inputs.query.sizes(), call.inputs.query.options());
  for (int64_t head = 0; head < all; ++head) {
    at::Tensor one = attend(OneHead(call.inputs, head), head, 1);
    if (apart) {
      const std::vector<int64_t> source = SourcesOfBands(*bands, head, call.tokens());
      one = one.index_select(1,
                             at::tensor(at::ArrayRef<int64_t>(source), at::kLong).to(one.device()));
    }
    out.narrow(0, head / call.heads(), 1).narrow(2, head % call.heads(), 1).copy_(one);
  }
  return out;
}

at::Tensor SparseBackend::AttendedPairs(const AttentionInputs& inputs,
                                        const AttentionMetadata* metadata) const {
  const SparseCall call = CallOf(inputs, metadata);
  if (static_cast<const SparseMetadata*>(metadata)->DenseAt(inputs.layer_index)) return {};
  return PairsOfBands(*MakeBands(call), call.batch(), call.heads(), call.tokens(),
                      call.inputs.key.size(1));
}

at::Tensor SparseBackend::AddedBranch(const AttentionInputs& inputs,
                                      const AttentionMetadata* metadata) const {
  const SparseCall call = CallOf(inputs, metadata);
  if (static_cast<const SparseMetadata*>(metadata)->DenseAt(inputs.layer_index)) return {};
  return MakeBranch(call);
}

Axes ReadGrid(Parameters& parameters, const AttentionSpec& spec) {
  const std::vector<int64_t> given =
      parameters.Ints("grid", {spec.grid[0], spec.grid[1], spec.grid[2]}, 3, 1);
  const Axes grid = {given[0], given[1], given[2]};
  if (spec.grid == Axes{0, 0, 0}) return grid;
  if (grid != spec.grid) {
    Parameters::Refuse("grid", "the job's grid is " + Text(spec.grid) + "; got " + Text(grid));
  }
  parameters.Settle("grid", nullptr);  // the job's, whether repeated or not
  return grid;
}

std::vector<int32_t> LargestIndices(const float* scores, int64_t n, int64_t count) {
  kernels::ChoiceScratch scratch;
  std::vector<int32_t> indices;
  kernels::ChooseLargest(scores, n, count, &scratch, &indices);
  std::sort(indices.begin(), indices.end());
  return indices;
}

namespace {

std::vector<std::vector<float>> MeansOfCudaHeads(const at::Tensor& tensor,
                                                 const Partition& blocks) {
  const at::Tensor means = BlockMeansCuda(tensor, DevicePartition(blocks, tensor.device())).cpu();
  const int64_t count = means.size(1) * means.size(2);
  const float* first = means.const_data_ptr<float>();
  std::vector<std::vector<float>> heads;
  for (int64_t head = 0; head < means.size(0); ++head) {
    heads.emplace_back(first + head * count, first + (head + 1) * count);
  }
  return heads;
}

}  // namespace

std::vector<std::vector<float>> MeansOfHeads(const SparseCall& call, const at::Tensor& tensor,
                                             const Partition& blocks) {
  if (tensor.is_cuda()) return MeansOfCudaHeads(tensor, blocks);
  const int64_t count = blocks.blocks(), heads = call.heads(), size = call.head_size();
  std::vector<std::vector<float>> means(call.batch() * heads, std::vector<float>(count * size));
  std::vector<int64_t> first(count, 0);
  for (int64_t block = 1; block < count; ++block) {
    first[block] = first[block - 1] + blocks.lengths[block - 1];
  }
  // Heads innermost: a token's heads lie side by side, and its memory page is looked up once.
  // A single block leaves nothing but heads to share out.
  const int64_t together = count > 1 ? heads : 1;
  ParallelFor(call.batch() * heads / together * count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % count;
      for (int64_t head = i / count * together; head < (i / count + 1) * together; ++head) {
        kernels::BlockMean(call.Rows(tensor, head), blocks.order.data() + first[block],
                           blocks.lengths[block], means[head].data() + block * size);
      }
    }
  });
  return means;
}

bool FitsKernelBlocks(const Partition& partition) {
  return std::all_of(partition.lengths.begin(), partition.lengths.end(),
                     [](int32_t length) { return length <= kernels::kBlock; });
}

}  // namespace denoised
