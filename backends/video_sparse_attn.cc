// VIDEO_SPARSE_ATTN.
#include <algorithm>
#include <cmath>

#include "backends/intra_op.h"
#include "backends/kernels/add_coarse.h"
#include "backends/sparse_backends.h"

namespace denoised {
namespace {

// The tiles in a device's memory.
struct DeviceTiles {
  DeviceTiles(const Partition& tiles, const at::Device& device)
      : geometry(tiles, tiles, device),
        tile_of(at::tensor(at::ArrayRef<int32_t>(tiles.BlockOfToken()), at::kInt).to(device)) {}

  DeviceGeometry geometry;
  at::Tensor tile_of;  // [tokens]
};

struct VsaSetting final : SparseSetting {
  std::shared_ptr<const RowGeometry> geometry;
  const Partition& tiles() const { return geometry->queries; }
  PerDevice<DeviceTiles> tiles_on;
  int64_t top_k = 1;
  bool coarse = false;
};

using HeadMeans = std::vector<std::vector<float>>;

// Means of the tiles of every head, in the inputs' dtype.
HeadMeans TileMeans(const SparseCall& call, const at::Tensor& tensor, const Partition& tiles) {
  HeadMeans means = MeansOfHeads(call, tensor, tiles);
  if (call.bfloat16()) {
    for (auto& head : means) kernels::RoundAllToBFloat16(&head);
  }
  return means;
}

// [rows][tiles]: mean queries times mean keys over sqrt(D); each operation rounds to the inputs'
// dtype, since rounding decides between tiles that are nearly level.
std::vector<float> TileScores(const SparseCall& call, const float* queries, int64_t rows,
                              const std::vector<float>& keys) {
  const int64_t size = call.head_size(), tiles = static_cast<int64_t>(keys.size()) / size;
  std::vector<float> scores(rows * tiles);
  kernels::Products(queries, rows, keys.data(), tiles, size, scores.data());
  if (call.bfloat16()) kernels::RoundAllToBFloat16(&scores);
  const float root = std::sqrt(static_cast<float>(size));
  for (float& score : scores) score /= root;
  if (call.bfloat16()) kernels::RoundAllToBFloat16(&scores);
  return scores;
}

class VsaBands final : public RowBands {
 public:
  VsaBands(const SparseCall& call, const VsaSetting& setting)
      : RowBands(setting.geometry),
        call_(call),
        top_k_(setting.top_k),
        queries_(TileMeans(call, call.inputs.query, setting.tiles())),
        keys_(TileMeans(call, call.inputs.key, setting.tiles())) {}

  const HeadMeans& query_means() const { return queries_; }
  const HeadMeans& key_means() const { return keys_; }

 protected:
  void ChooseRow(int64_t head, int64_t tile, kernels::ChoiceScratch* scratch,
                 std::vector<int32_t>* chosen) const override {
    const float* query = queries_[head].data() + tile * call_.head_size();
    const std::vector<float> scores = TileScores(call_, query, 1, keys_[head]);
    kernels::ChooseLargest(scores.data(), static_cast<int64_t>(scores.size()), top_k_, scratch,
                           chosen);
    std::sort(chosen->begin(), chosen->end());
  }

 private:
  const SparseCall& call_;
  const int64_t top_k_;
  const HeadMeans queries_, keys_;
};

std::shared_ptr<const DeviceTiles> TilesOnDevice(const SparseCall& call) {
  const auto& setting = static_cast<const VsaSetting&>(*call.setting);
  const at::Device device = call.inputs.query.device();
  return setting.tiles_on.Of(device, [&] { return DeviceTiles(setting.tiles(), device); });
}

// TileMeans and TileScores on a CUDA device: [B * H, tiles, D] and [B * H, tiles, tiles].
at::Tensor TileMeansOnDevice(const SparseCall& call, const at::Tensor& tensor,
                             const DevicePartition& tiles) {
  const at::Tensor means = BlockMeansCuda(tensor, tiles);
  return call.bfloat16() ? means.to(at::kBFloat16).to(at::kFloat) : means;
}

at::Tensor TileScoresOnDevice(const SparseCall& call, const DevicePartition& tiles) {
  return BlockScoresCuda(TileMeansOnDevice(call, call.inputs.query, tiles),
                         TileMeansOnDevice(call, call.inputs.key, tiles),
                         std::sqrt(static_cast<float>(call.head_size())), call.bfloat16());
}

// The coarse branch before it is spread over the tokens, float32 [B * H, tiles, D].
at::Tensor CoarseOnDevice(const SparseCall& call, const at::Tensor& scores,
                          const DevicePartition& tiles) {
  return at::bmm(at::softmax(scores, -1), TileMeansOnDevice(call, call.inputs.value, tiles));
}

// The same on the host, from the means of queries and keys. A task has some rows of a head, so that
// no array grows with the square of the tiles.
at::Tensor CoarseOnHost(const SparseCall& call, const Partition& tiles, const HeadMeans& queries,
                        const HeadMeans& keys) {
  constexpr int64_t kRows = 16;
  const int64_t count = tiles.blocks(), size = call.head_size(),
                heads = call.batch() * call.heads();
  const int64_t tasks = (count + kRows - 1) / kRows;  // of a head
  const HeadMeans values = TileMeans(call, call.inputs.value, tiles);
  at::Tensor coarse = at::empty({heads, count, size}, at::kFloat);
  float* const out = coarse.mutable_data_ptr<float>();
  ParallelFor(heads * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / tasks, first = i % tasks * kRows;
      const int64_t rows = std::min(kRows, count - first);
      std::vector<float> weights =
          TileScores(call, queries[head].data() + first * size, rows, keys[head]);
      kernels::SoftmaxRows(&weights, count);
      const auto sums = kernels::WeightedSums(weights, values[head], count, size);
      std::copy(sums.begin(), sums.end(), out + (head * count + first) * size);
    }
  });
  return coarse;
}

// `coarse` of CoarseOnHost, gated, to the contiguous output of the sparse branch.
void AddCoarseOnHost(const SparseCall& call, const Partition& tiles, const at::Tensor& coarse,
                     at::Tensor* out) {
  const at::Tensor gate = call.inputs.gate.defined() ? OnHost(call.inputs.gate) : at::Tensor();
  const std::vector<int32_t> tile_of = tiles.BlockOfToken();
  for (int64_t row = 0; row < call.batch(); ++row) {
    kernels::AddCoarseCall add;
    add.heads = call.heads();
    add.head_size = call.head_size();
    add.blocks = tiles.blocks();
    add.coarse = coarse.const_data_ptr<float>() + row * coarse.numel() / call.batch();
    add.block_of_token = tile_of.data();
    add.element = call.bfloat16() ? kernels::Element::kBFloat16 : kernels::Element::kFloat32;
    if (gate.defined()) {
      add.gate = gate[row].const_data_ptr();
      add.gate_token_stride = gate.stride(1);
      add.gate_head_stride = gate.stride(2);
    }
    add.out = (*out)[row].mutable_data_ptr();
    constexpr int64_t kTokens = 64;
    ParallelFor(call.tokens(), kTokens,
                [&](int64_t begin, int64_t end) { kernels::AddCoarse(add, begin, end); });
  }
}

// ceil((1 - sparsity) * tiles) in IEEE double, at least one tile and at most all.
int64_t Budget(double sparsity, int64_t tiles) {
  const double kept = std::ceil((1.0 - sparsity) * static_cast<double>(tiles));
  return std::clamp<int64_t>(static_cast<int64_t>(kept), 1, tiles);
}

}  // namespace

std::shared_ptr<SparseSetting> VideoSparseBackend::ReadSetting(
    Parameters& parameters, const MetadataRequest& request) const {
  auto setting = std::make_shared<VsaSetting>();
  const std::vector<int64_t> tile = parameters.Ints("tile", {4, 4, 4}, 3, 1);
  const Partition cut = TileGrid(ReadGrid(parameters, request.spec), {tile[0], tile[1], tile[2]});
  setting->geometry = std::make_shared<RowGeometry>(cut, cut);
  const int64_t tiles = cut.blocks();
  const bool counted = parameters.Has("top_k");
  if (counted && parameters.Has("sparsity")) {
    Parameters::Refuse("top_k", "wanted one of top_k and sparsity; got both");
  }
  setting->top_k = Budget(parameters.Real("sparsity", 0.8, 0, 1), tiles);
  setting->top_k = std::min(parameters.Int("top_k", setting->top_k, 1, INT32_MAX), tiles);
  parameters.Settle("top_k", counted ? nlohmann::json(setting->top_k) : nlohmann::json());
  if (counted) parameters.Settle("sparsity", nullptr);
  setting->coarse = parameters.Flag("coarse", request.spec.has_gate);
  return setting;
}

std::string VideoSparseBackend::Note(const AttentionSpec& spec,
                                     const AttentionMetadata* metadata) const {
  const auto* sparse = dynamic_cast<const SparseMetadata*>(metadata);
  if (sparse == nullptr || spec.has_gate) return "";
  const bool coarse = static_cast<const VsaSetting&>(*sparse->setting).coarse;
  return coarse ? "VIDEO_SPARSE_ATTN: the coarse branch was added without a gate; the checkpoint "
                  "has no to_gate_compress"
                : "VIDEO_SPARSE_ATTN: the gate branch was off; the checkpoint has no "
                  "to_gate_compress";
}

PlanSize VideoSparseBackend::SizeOf(const SparseSetting& setting, const AttentionSpec&) const {
  const auto& vsa = static_cast<const VsaSetting&>(setting);
  const int64_t tiles = vsa.tiles().blocks();
  return {.parameter = "tile",
          .query_blocks = tiles,
          .key_blocks = tiles,
          .scores = tiles * tiles,
          .entries = tiles * vsa.top_k,
          .means = 2 * tiles,
          .band_bytes = tiles * 32};
}

// Means and sums of tiles, and a gate that is not read as it comes. Of CPU calls: on a device
// nobody asks.
int64_t VideoSparseBackend::BranchBytes(const SparseSetting& setting, const AttentionSpec& spec,
                                        int64_t rows) const {
  const auto& vsa = static_cast<const VsaSetting&>(setting);
  if (!vsa.coarse) return 0;
  return rows * spec.num_heads * 4 * 2 * vsa.tiles().blocks() * spec.head_size +
         QueryBytes(spec, rows, 4);
}

std::unique_ptr<SparseBands> VideoSparseBackend::MakeBands(const SparseCall& call) const {
  return std::make_unique<VsaBands>(call, static_cast<const VsaSetting&>(*call.setting));
}

// The means, and on CUDA the scores, that choose the tiles serve the coarse branch too.
at::Tensor VideoSparseBackend::Compute(const SparseCall& call) const {
  const auto& setting = static_cast<const VsaSetting&>(*call.setting);
  if (call.inputs.query.is_cuda()) {
    return FitsKernelBlocks(setting.tiles()) ? ComputeOnDevice(call) : SparseBackend::Compute(call);
  }
  const VsaBands bands(call, setting);
  at::Tensor out = BandForward(call.inputs, bands, scores());
  if (setting.coarse) {
    const at::Tensor coarse =
        CoarseOnHost(call, setting.tiles(), bands.query_means(), bands.key_means());
    AddCoarseOnHost(call, setting.tiles(), coarse, &out);
  }
  return out;
}

at::Tensor VideoSparseBackend::ComputeOnDevice(const SparseCall& call) const {
  const auto& setting = static_cast<const VsaSetting&>(*call.setting);
  const auto tiles = TilesOnDevice(call);
  const at::Tensor scores = TileScoresOnDevice(call, tiles->geometry.keys);
  const at::Tensor fine =
      BlockSparseForwardCuda(call.inputs, LargestPlanCuda(scores, tiles->geometry, setting.top_k));
  if (!setting.coarse) return fine;
  return AddCoarseCuda(fine, CoarseOnDevice(call, scores, tiles->geometry.keys), call.inputs.gate,
                       tiles->tile_of);
}

at::Tensor VideoSparseBackend::MakeBranch(const SparseCall& call) const {
  const auto& setting = static_cast<const VsaSetting&>(*call.setting);
  if (!setting.coarse) return {};
  at::Tensor coarse, tile_of;
  if (call.inputs.query.is_cuda()) {
    const auto tiles = TilesOnDevice(call);
    const at::Tensor scores = TileScoresOnDevice(call, tiles->geometry.keys);
    coarse = CoarseOnDevice(call, scores, tiles->geometry.keys);
    tile_of = tiles->tile_of;
  } else {
    const VsaBands bands(call, setting);
    coarse = CoarseOnHost(call, setting.tiles(), bands.query_means(), bands.key_means());
    tile_of = at::tensor(at::ArrayRef<int32_t>(setting.tiles().BlockOfToken()), at::kInt);
  }
  const at::Tensor spread =  // [B, S, H, D]
      coarse.unflatten(0, {call.batch(), call.heads()}).index_select(2, tile_of).transpose(1, 2);
  return call.inputs.gate.defined() ? spread * call.inputs.gate.to(at::kFloat) : spread;
}

}  // namespace denoised
