// BSA_ATTN.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backends/block_sparse_forward.h"
#include "backends/sparse_backends.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

struct BsaSetting final : SparseSetting {
  Partition tiles;
  double query_keep_ratio = 0.5;
  double kv_cumulative_threshold = 0.9;
  int64_t min_kv_blocks = 4;
};

// What one head keeps.
struct HeadChoice {
  std::vector<std::vector<int32_t>> kept;  // per tile: indices inside the tile, ascending
  std::vector<std::vector<int32_t>> rows;  // per tile: key tiles, ascending
};

// Cosine similarity of each query of the tile to the one in its middle.
std::vector<float> SimilarityToCentre(const std::vector<float>& queries, int64_t size) {
  const int64_t count = static_cast<int64_t>(queries.size()) / size;
  const float* centre = queries.data() + count / 2 * size;
  const auto norm = [&](const float* x) { return std::sqrt(kernels::Dot(x, x, size)); };
  std::vector<float> similarity(count);
  for (int64_t i = 0; i < count; ++i) {
    const float* query = queries.data() + i * size;
    const float norms = std::max(norm(query), 1e-12f) * std::max(norm(centre), 1e-12f);
    similarity[i] = kernels::Dot(query, centre, size) / norms;
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

// Key tiles in falling order of probability while the mass before them is below the threshold.
std::vector<int32_t> KeptKeys(const std::vector<float>& probability, double threshold,
                              int64_t least) {
  std::vector<int32_t> order(probability.size()), kept;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return RankOf(probability[a]) > RankOf(probability[b]);
  });
  float before = 0;
  for (int32_t tile : order) {
    if (before >= threshold && static_cast<int64_t>(kept.size()) >= least) break;
    kept.push_back(tile);
    before += probability[tile];
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

HeadChoice Choose(const SparseCall& call, const BsaSetting& setting, int64_t head) {
  const Partition& tiles = setting.tiles;
  const int64_t size = call.head_size(), count = tiles.blocks();
  const kernels::HeadRows rows = call.Rows(call.host_query, head);
  const std::vector<float> keys =
      kernels::BlockMeans(call.Rows(call.host_key, head), tiles.order, tiles.lengths);
  HeadChoice choice;
  size_t position = 0;
  for (int64_t tile = 0; tile < count; ++tile) {
    std::vector<float> queries(tiles.lengths[tile] * size);
    for (int32_t i = 0; i < tiles.lengths[tile]; ++i) {
      kernels::LoadRow(rows, tiles.order[position + i], queries.data() + i * size);
    }
    choice.kept.push_back(KeptQueries(queries, size, setting.query_keep_ratio));
    std::vector<int32_t> kept_tokens;
    for (int32_t i : choice.kept.back()) kept_tokens.push_back(tiles.order[position + i]);
    const std::vector<float> mean =
        kernels::BlockMeans(rows, kept_tokens, {static_cast<int32_t>(kept_tokens.size())});
    std::vector<float> probability = kernels::Products(mean, keys, size);
    for (float& p : probability) p /= std::sqrt(static_cast<float>(size));
    kernels::SoftmaxRows(&probability, count);
    choice.rows.push_back(
        KeptKeys(probability, setting.kv_cumulative_threshold, setting.min_kv_blocks));
    position += tiles.lengths[tile];
  }
  return choice;
}

std::vector<HeadChoice> ChooseAll(const SparseCall& call, const BsaSetting& setting) {
  std::vector<HeadChoice> choices(call.batch() * call.heads());
  SharedStop stop;
  at::parallel_for(0, static_cast<int64_t>(choices.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end && !stop.Asked(); ++head) {
      choices[head] = Choose(call, setting, head);
    }
  });
  stop.ThrowIfAsked();
  return choices;
}

// The kept queries of one head as a plan of its own: which they are differs from head to head.
kernels::BlockPlan PlanOfHead(const Partition& tiles, const HeadChoice& choice) {
  Partition queries;
  size_t position = 0;
  for (int64_t tile = 0; tile < tiles.blocks(); ++tile) {
    for (int32_t i : choice.kept[tile]) queries.order.push_back(tiles.order[position + i]);
    queries.lengths.push_back(static_cast<int32_t>(choice.kept[tile].size()));
    position += tiles.lengths[tile];
  }
  PlanBuilder builder(queries, tiles, 1);
  for (int64_t tile = 0; tile < tiles.blocks(); ++tile) builder.AddRow(tile, choice.rows[tile]);
  kernels::BlockPlan plan = builder.Take();
  plan.covers_queries = false;
  return plan;
}

// For every token the kept token whose output it has: itself, or the nearest kept one of its tile
// by index, the lower of two.
std::vector<int64_t> OutputSource(const Partition& tiles, const HeadChoice& choice) {
  std::vector<int64_t> source(tiles.order.size());
  size_t position = 0;
  for (int64_t tile = 0; tile < tiles.blocks(); ++tile) {
    const std::vector<int32_t>& kept = choice.kept[tile];
    for (int32_t i = 0; i < tiles.lengths[tile]; ++i) {
      const auto nearest = *std::min_element(kept.begin(), kept.end(), [&](int32_t a, int32_t b) {
        return std::abs(a - i) < std::abs(b - i);
      });
      source[tiles.order[position + i]] = tiles.order[position + nearest];
    }
    position += tiles.lengths[tile];
  }
  return source;
}

}  // namespace

std::shared_ptr<SparseSetting> BsaBackend::ReadSetting(Parameters& parameters,
                                                       const MetadataRequest& request) const {
  auto setting = std::make_shared<BsaSetting>();
  setting->tiles = TileGrid(ReadGrid(parameters, request.spec), {4, 4, 4});
  setting->query_keep_ratio = parameters.Real("query_keep_ratio", 0.5, 0, 1);
  setting->kv_cumulative_threshold = parameters.Real("kv_cumulative_threshold", 0.9, 0, 1);
  setting->min_kv_blocks = parameters.Int("min_kv_blocks", 4, 1, INT32_MAX);
  return setting;
}

PlanSize BsaBackend::SizeOf(const SparseSetting& setting, const AttentionSpec&) const {
  const int64_t tiles = static_cast<const BsaSetting&>(setting).tiles.blocks();
  return {.parameter = "kv_cumulative_threshold",
          .query_blocks = tiles,
          .key_blocks = tiles,
          .scores = tiles * tiles,
          .entries = tiles * tiles};
}

kernels::BlockPlan BsaBackend::MakePlan(const SparseCall& call) const {
  const auto& setting = static_cast<const BsaSetting&>(*call.setting);
  const std::vector<HeadChoice> choices = ChooseAll(call, setting);
  const Partition& tiles = setting.tiles;
  PlanBuilder builder(tiles, tiles, static_cast<int64_t>(choices.size()));
  for (const HeadChoice& choice : choices) {
    for (int64_t tile = 0; tile < tiles.blocks(); ++tile) {
      uint64_t kept = 0;
      for (int32_t i : choice.kept[tile]) kept |= uint64_t{1} << i;
      builder.AddRow(tile, choice.rows[tile],
                     std::vector<uint64_t>(choice.rows[tile].size(), kept));
    }
  }
  return builder.Take();
}

at::Tensor BsaBackend::Attend(const SparseCall& call) const {
  const auto& setting = static_cast<const BsaSetting&>(*call.setting);
  const std::vector<HeadChoice> choices = ChooseAll(call, setting);
  at::Tensor out = at::empty(call.inputs.query.sizes(), call.inputs.query.options());
  for (size_t head = 0; head < choices.size(); ++head) {
    const int64_t b = static_cast<int64_t>(head) / call.heads();
    const int64_t h = static_cast<int64_t>(head) % call.heads();
    const auto one = [&](const at::Tensor& x) { return x.narrow(0, b, 1).narrow(2, h, 1); };
    AttentionInputs inputs = call.inputs;
    inputs.query = one(call.inputs.query);
    inputs.key = one(call.inputs.key);
    inputs.value = one(call.inputs.value);
    const at::Tensor kept =
        BlockSparseForward(inputs, PlanOfHead(setting.tiles, choices[head]), admission());
    const std::vector<int64_t> source = OutputSource(setting.tiles, choices[head]);
    const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(source), at::kLong);
    one(out).copy_(kept.index_select(1, index.to(out.device())));
  }
  return out;
}

}  // namespace denoised
