// SLA_ATTN.
#include <algorithm>
#include <limits>
#include <numeric>

#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/sparse_backends.h"

namespace denoised {
namespace {

struct Cut {
  Partition queries, keys;
  int64_t kept;  // key blocks that a query block attends
};

// The cut in a device's memory.
struct DeviceCut {
  DeviceCut(const Cut& cut, const at::Device& device)
      : geometry(cut.queries, cut.keys, device), means(AllOf(cut.keys.blocks()), device) {}
  static Partition AllOf(int64_t length) { return RunsOf(length, length); }

  DeviceGeometry geometry;
  DevicePartition means;  // of the key blocks, as one block
};

struct SlaSetting final : SparseSetting {
  double ratio = 0.1;
  int64_t block_q = 128, block_k = 64;
  std::string feature_map;
  PerDevice<DeviceCut> cut_on;
};

int64_t KeptBlocks(double ratio, int64_t blocks) {
  return std::clamp<int64_t>(static_cast<int64_t>(ratio * static_cast<double>(blocks)), 1, blocks);
}

Cut CutOf(const SparseCall& call) {
  const auto& setting = static_cast<const SlaSetting&>(*call.setting);
  Cut cut{RunsOf(call.tokens(), setting.block_q), RunsOf(call.tokens(), setting.block_k), 1};
  cut.kept = KeptBlocks(setting.ratio, cut.keys.blocks());
  return cut;
}

// Mean keys of the blocks of one head less their own mean. (The paper takes off the mean of all
// keys; what all keys share moves a row's scores alike and changes no choice.)
std::vector<float> SmoothMeans(std::vector<float> means, int64_t head_size) {
  std::vector<float> overall(head_size);
  std::vector<int32_t> all(means.size() / head_size);
  std::iota(all.begin(), all.end(), 0);
  kernels::BlockMean({means.data(), head_size, kernels::Element::kFloat32, head_size}, all.data(),
                     static_cast<int64_t>(all.size()), overall.data());
  for (size_t i = 0; i < means.size(); ++i) means[i] -= overall[i % overall.size()];
  return means;
}

class SlaBands final : public RowBands {
 public:
  SlaBands(const SparseCall& call, const Cut& cut)
      : RowBands(std::make_shared<RowGeometry>(cut.queries, cut.keys)),
        head_size_(call.head_size()),
        kept_(cut.kept),
        queries_(MeansOfHeads(call, call.inputs.query, cut.queries)),
        keys_(MeansOfHeads(call, call.inputs.key, cut.keys)) {
    for (std::vector<float>& means : keys_) means = SmoothMeans(std::move(means), head_size_);
  }

 protected:
  void ChooseRow(int64_t head, int64_t block, kernels::ChoiceScratch* scratch,
                 std::vector<int32_t>* chosen) const override {
    const int64_t blocks = static_cast<int64_t>(keys_[head].size()) / head_size_;
    std::vector<float> scores(blocks);
    kernels::Products(queries_[head].data() + block * head_size_, 1, keys_[head].data(), blocks,
                      head_size_, scores.data());
    kernels::ChooseLargest(scores.data(), blocks, kept_, scratch, chosen);
    std::sort(chosen->begin(), chosen->end());
  }

 private:
  const int64_t head_size_, kept_;
  std::vector<std::vector<float>> queries_, keys_;  // means of blocks, [head]
};

at::Tensor FeatureMap(const at::Tensor& x, const std::string& name) {
  if (name == "elu") return at::elu(x) + 1;
  if (name == "relu") return at::relu(x);
  // No denormal number goes into the products (kernels/pool.h); NaN stays.
  at::Tensor weights = at::softmax(x, -1);
  return x.is_cpu() ? at::threshold_(weights, std::numeric_limits<float>::min(), 0) : weights;
}

void CheckProjection(const at::Tensor& tensor, const char* name, int64_t axes, int64_t size) {
  if (!tensor.defined()) return;
  bool fits = tensor.dim() == axes;
  for (int64_t axis = 0; fits && axis < axes; ++axis) fits = tensor.size(axis) == size;
  if (!fits) {
    throw InvalidField(
        name, "wanted " + std::to_string(axes) + " axes of the head size " + std::to_string(size));
  }
}

}  // namespace

std::shared_ptr<SparseSetting> SlaBackend::ReadSetting(Parameters& parameters,
                                                       const MetadataRequest& request) const {
  auto setting = std::make_shared<SlaSetting>();
  ReadGrid(parameters, request.spec);  // accepted as from other backends; blocks are plain runs
  setting->ratio = parameters.Real("ratio", DefaultRatio(), 0, 1);
  setting->block_q = parameters.Int("block_q", 128, 1, 1 << 20);
  setting->block_k = parameters.Int("block_k", 64, 1, 1 << 20);
  setting->feature_map = parameters.Word("feature_map", {"softmax", "elu", "relu"});
  return setting;
}

std::string SlaBackend::Note(const AttentionSpec& spec, const AttentionMetadata*) const {
  if (spec.has_projection) return "";
  return std::string(AttnBackendName(id())) +
         ": the linear branch was off; the checkpoint has no proj_l";
}

PlanSize SlaBackend::SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const {
  const auto& sla = static_cast<const SlaSetting&>(setting);
  const auto blocks = [](int64_t tokens, int64_t block) { return (tokens + block - 1) / block; };
  const int64_t queries = blocks(spec.q_len, sla.block_q), keys = blocks(spec.kv_len, sla.block_k);
  return {.parameter = sla.block_q < sla.block_k ? "block_q" : "block_k",
          .query_blocks = queries,
          .key_blocks = keys,
          .scores = queries * keys,
          .entries = queries * KeptBlocks(sla.ratio, keys),
          .means = queries + keys + 1,
          .band_bytes = keys * 32};
}

int64_t SlaBackend::BranchBytes(const SparseSetting&, const AttentionSpec& spec,
                                int64_t rows) const {
  constexpr int64_t kCopies = 8;  // operands, sums and the result, float32 of the queries' shape
  return spec.has_projection ? kCopies * QueryBytes(spec, rows, 4) : 0;
}

std::unique_ptr<SparseBands> SlaBackend::MakeBands(const SparseCall& call) const {
  return std::make_unique<SlaBands>(call, CutOf(call));
}

std::optional<DevicePlan> SlaBackend::PlanOnDevice(const SparseCall& call) const {
  if (!call.inputs.query.is_cuda()) return std::nullopt;
  const auto& setting = static_cast<const SlaSetting&>(*call.setting);
  if (setting.block_k > kernels::kBlock) return std::nullopt;
  const at::Device device = call.inputs.query.device();
  const auto cut = setting.cut_on.Of(device, [&] { return DeviceCut(CutOf(call), device); });
  const DeviceGeometry& geometry = cut->geometry;
  const at::Tensor means = BlockMeansCuda(call.inputs.key, geometry.keys);  // [B * H, blocks, D]
  const at::Tensor overall = BlockMeansCuda(means.transpose(0, 1).unsqueeze(0), cut->means);
  const at::Tensor scores = BlockScoresCuda(BlockMeansCuda(call.inputs.query, geometry.queries),
                                            means - overall, 1, false);
  return LargestPlanCuda(scores, geometry, KeptBlocks(setting.ratio, geometry.keys.blocks));
}

at::Tensor SlaBackend::MakeBranch(const SparseCall& call) const {
  const AttentionInputs& in = call.inputs;
  // Before training the projection is zero: no branch without one.
  if (!in.projection.defined() && !in.projection_bias.defined()) return {};
  CheckProjection(in.projection, "projection", 2, call.head_size());
  CheckProjection(in.projection_bias, "projection_bias", 1, call.head_size());
  const auto& setting = static_cast<const SlaSetting&>(*call.setting);
  const ScopedLibTorchThreads threads;
  const auto heads_first = [](const at::Tensor& x) { return x.to(at::kFloat).transpose(1, 2); };
  const at::Tensor q = FeatureMap(heads_first(in.query), setting.feature_map);
  const at::Tensor k = FeatureMap(heads_first(in.key), setting.feature_map);
  at::Tensor out = at::zeros(q.sizes(), q.options());
  if (in.projection.defined()) {
    const at::Tensor sums = at::matmul(k.transpose(2, 3), heads_first(in.value));  // [B, H, D, D]
    const at::Tensor norm = (q * k.sum(2, /*keepdim=*/true)).sum(3, /*keepdim=*/true) + 1e-5;
    out = at::matmul(at::matmul(q, sums) / norm, in.projection.to(at::kFloat).t());
  }
  if (in.projection_bias.defined()) out = out + in.projection_bias.to(at::kFloat);
  return out.transpose(1, 2);
}

}  // namespace denoised
