// NABLA_ATTN.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "backends/sparse_backends.h"

namespace denoised {
namespace {

struct NablaSetting final : SparseSetting {
  Partition tiles;
  Axes tiles_per_axis{};
  double mass = 0.9;           // P
  std::optional<Axes> window;  // in tiles
};

// Drops the smallest entries that together stay below 1 - mass; the one that crosses is kept. Among
// equals the higher index is dropped first.
std::vector<uint8_t> KeepMass(const float* probability, int64_t n, double mass) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const float x = RankOf(probability[a]), y = RankOf(probability[b]);
    return x < y || (x == y && a > b);
  });
  std::vector<uint8_t> keep(n, 0);
  float sum = 0;
  for (int32_t i : order) {
    sum += probability[i];
    keep[i] = !(sum < static_cast<float>(1.0 - mass));  // from the first NaN on as well
  }
  keep[order.back()] = 1;  // whatever rounding does to the sum, the largest stays
  return keep;
}

bool InWindow(int64_t a, int64_t b, const Axes& tiles, const Axes& window) {
  const auto near = [&](int64_t x, int64_t y, int axis) {
    return std::abs(x - y) <= window[axis] / 2;
  };
  const int64_t plane = tiles[1] * tiles[2];
  return near(a / plane, b / plane, 0) &&
         near(a / tiles[2] % tiles[1], b / tiles[2] % tiles[1], 1) &&
         near(a % tiles[2], b % tiles[2], 2);
}

std::vector<int32_t> Row(const NablaSetting& setting, const float* probability, int64_t tile) {
  const int64_t n = setting.tiles.blocks();
  const std::vector<uint8_t> keep = KeepMass(probability, n, setting.mass);
  std::vector<int32_t> row;
  for (int64_t other = 0; other < n; ++other) {
    const bool near =
        setting.window && InWindow(tile, other, setting.tiles_per_axis, *setting.window);
    if (keep[other] != 0 || near) row.push_back(static_cast<int32_t>(other));
  }
  return row;
}

}  // namespace

std::shared_ptr<SparseSetting> NablaBackend::ReadSetting(Parameters& parameters,
                                                         const MetadataRequest& request) const {
  constexpr Axes kTile = {1, 8, 8};
  auto setting = std::make_shared<NablaSetting>();
  const Axes grid = ReadGrid(parameters, request.spec);
  setting->tiles = TileGrid(grid, kTile);
  setting->tiles_per_axis = TilesPerAxis(grid, kTile);
  setting->mass = parameters.Real("P", 0.9, 0, 1);
  const std::vector<int64_t> window = parameters.Ints("window", {}, 3, 0);
  if (!window.empty()) setting->window = Axes{window[0], window[1], window[2]};
  return setting;
}

PlanSize NablaBackend::SizeOf(const SparseSetting& setting, const AttentionSpec&) const {
  const int64_t tiles = static_cast<const NablaSetting&>(setting).tiles.blocks();
  return {.parameter = "P",
          .query_blocks = tiles,
          .key_blocks = tiles,
          .scores = tiles * tiles,
          .entries = tiles * tiles};
}

kernels::BlockPlan NablaBackend::MakePlan(const SparseCall& call) const {
  const auto& setting = static_cast<const NablaSetting&>(*call.setting);
  const Partition& tiles = setting.tiles;
  const auto queries = MeansOfHeads(call, call.inputs.query, tiles);
  const auto keys = MeansOfHeads(call, call.inputs.key, tiles);
  return PlanPerHead(tiles, tiles, call.batch() * call.heads(), [&](int64_t head) {
    std::vector<float> probability = kernels::Products(queries[head], keys[head], call.head_size());
    const float root = std::sqrt(static_cast<float>(call.head_size()));
    for (float& p : probability) p /= root;
    kernels::SoftmaxRows(&probability, tiles.blocks());
    std::vector<std::vector<int32_t>> rows;
    for (int64_t tile = 0; tile < tiles.blocks(); ++tile) {
      rows.push_back(Row(setting, probability.data() + tile * tiles.blocks(), tile));
    }
    return rows;
  });
}

}  // namespace denoised
