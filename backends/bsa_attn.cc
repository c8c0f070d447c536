// BSA_ATTN.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "backends/sparse_backends.h"

namespace denoised {
namespace {

struct BsaSetting final : SparseSetting {
  std::shared_ptr<const RowGeometry> tiles;
  double query_keep_ratio = 0.5;
  double kv_cumulative_threshold = 0.9;
  int64_t min_kv_blocks = 4;
};

// Cosine similarity of each query of the tile to the one in its middle. A query that is not finite
// is like none, so that it is kept and its output shows it; beside a middle that is not finite all
// others are alike.
std::vector<float> SimilarityToCentre(const std::vector<float>& queries, int64_t size) {
  const int64_t count = static_cast<int64_t>(queries.size()) / size;
  const float* centre = queries.data() + count / 2 * size;
  const auto norm = [&](const float* x) { return std::sqrt(kernels::Dot(x, x, size)); };
  std::vector<float> similarity(count);
  for (int64_t i = 0; i < count; ++i) {
    const float* query = queries.data() + i * size;
    const float length = norm(query);
    const float norms = std::max(length, 1e-12f) * std::max(norm(centre), 1e-12f);
    const float cosine = kernels::Dot(query, centre, size) / norms;
    similarity[i] = std::isfinite(cosine)   ? cosine
                    : std::isfinite(length) ? 1.0f
                                            : -std::numeric_limits<float>::infinity();
  }
  return similarity;
}

// The least similar queries of a tile, ascending; ties to the lowest index.
std::vector<int32_t> KeptQueries(const std::vector<float>& queries, int64_t size, double ratio) {
  std::vector<float> distance = SimilarityToCentre(queries, size);
  for (float& x : distance) x = -x;
  const int64_t count = static_cast<int64_t>(distance.size());
  const int64_t keep = static_cast<int64_t>(ratio * static_cast<double>(count));
  return LargestIndices(distance.data(), count, std::max<int64_t>(1, keep));
}

// The kept one whose output a dropped query has: the nearest by index, the lower of two.
int32_t NearestOf(const std::vector<int32_t>& kept, int32_t i) {
  return *std::min_element(kept.begin(), kept.end(),
                           [&](int32_t a, int32_t b) { return std::abs(a - i) < std::abs(b - i); });
}

class BsaBands final : public SparseBands {
 public:
  BsaBands(const SparseCall& call, const BsaSetting& setting)
      : call_(call),
        setting_(setting),
        geometry_(*setting.tiles),
        keys_(MeansOfHeads(call, call.host_key, setting.tiles->queries)) {}

  const kernels::KeyCut& keys() const override { return geometry_.keys.cut; }
  int64_t bands() const override { return static_cast<int64_t>(geometry_.pieces.size()); }
  Common common() const override { return Common::kNothing; }

  void Make(int64_t head, int64_t tile, kernels::Band* out) const override {
    const RowGeometry::Piece& piece = geometry_.pieces[tile];
    const int32_t* tokens = geometry_.queries.order.data() + piece.first;
    const std::vector<int32_t> kept = KeptOf(head, tokens, piece.length);
    for (const int32_t i : kept) out->queries.push_back(tokens[i]);
    for (int32_t i = 0; i < piece.length; ++i) {
      const int32_t from = NearestOf(kept, i);
      if (from != i) out->copies.push_back({tokens[i], tokens[from]});
    }
    for (const int32_t block : KeysFor(head, out->queries)) {
      geometry_.keys.Append(block, &out->columns);
    }
  }

 private:
  std::vector<int32_t> KeptOf(int64_t head, const int32_t* tokens, int32_t count) const {
    const int64_t size = call_.head_size();
    const kernels::HeadRows rows = call_.Rows(call_.host_query, head);
    std::vector<float> queries(count * size);
    for (int32_t i = 0; i < count; ++i) {
      kernels::LoadRow(rows, tokens[i], queries.data() + i * size);
    }
    return KeptQueries(queries, size, setting_.query_keep_ratio);
  }

  // Key tiles in falling order of probability while the mass before them is below the threshold.
  std::vector<int32_t> KeysFor(int64_t head, const std::vector<int32_t>& kept) const {
    const int64_t size = call_.head_size(), n = geometry_.queries.blocks();
    std::vector<float> mean(size), probability(n);
    kernels::BlockMean(call_.Rows(call_.host_query, head), kept.data(),
                       static_cast<int64_t>(kept.size()), mean.data());
    kernels::Products(mean.data(), 1, keys_[head].data(), n, size, probability.data());
    for (float& p : probability) p /= std::sqrt(static_cast<float>(size));
    kernels::SoftmaxRows(&probability, n);
    kernels::ChoiceScratch scratch;
    std::vector<int32_t> chosen;
    kernels::KeepMass(probability.data(), n, setting_.kv_cumulative_threshold,
                      setting_.min_kv_blocks, &scratch, &chosen);
    return chosen;
  }

  const SparseCall& call_;
  const BsaSetting& setting_;
  const RowGeometry& geometry_;
  const std::vector<std::vector<float>> keys_;  // means of tiles, [head]
};

}  // namespace

std::shared_ptr<SparseSetting> BsaBackend::ReadSetting(Parameters& parameters,
                                                       const MetadataRequest& request) const {
  auto setting = std::make_shared<BsaSetting>();
  const Partition tiles = TileGrid(ReadGrid(parameters, request.spec), {4, 4, 4});
  setting->tiles = std::make_shared<RowGeometry>(tiles, tiles);
  setting->query_keep_ratio = parameters.Real("query_keep_ratio", 0.5, 0, 1);
  setting->kv_cumulative_threshold = parameters.Real("kv_cumulative_threshold", 0.9, 0, 1);
  setting->min_kv_blocks = parameters.Int("min_kv_blocks", 4, 1, INT32_MAX);
  return setting;
}

PlanSize BsaBackend::SizeOf(const SparseSetting& setting, const AttentionSpec& spec) const {
  const int64_t tiles = static_cast<const BsaSetting&>(setting).tiles->queries.blocks();
  return {.parameter = "kv_cumulative_threshold",
          .query_blocks = tiles,
          .key_blocks = tiles,
          .scores = tiles * tiles,
          .entries = tiles * tiles,
          .means = tiles,
          .band_bytes = kernels::kBlock * spec.head_size * 4 + tiles * 32};
}

std::unique_ptr<SparseBands> BsaBackend::MakeBands(const SparseCall& call) const {
  return std::make_unique<BsaBands>(call, static_cast<const BsaSetting&>(*call.setting));
}

}  // namespace denoised
