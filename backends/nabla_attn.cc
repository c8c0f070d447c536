// NABLA_ATTN.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iterator>

#include "backends/sparse_backends.h"

namespace denoised {
namespace {

struct NablaSetting final : SparseSetting {
  std::shared_ptr<const RowGeometry> tiles;
  Axes tiles_per_axis{};
  double mass = 0.9;           // P
  std::optional<Axes> window;  // in tiles
};

bool InWindow(int64_t a, int64_t b, const Axes& tiles, const Axes& window) {
  const auto near = [&](int64_t x, int64_t y, int axis) {
    return std::abs(x - y) <= window[axis] / 2;
  };
  const int64_t plane = tiles[1] * tiles[2];
  return near(a / plane, b / plane, 0) &&
         near(a / tiles[2] % tiles[1], b / tiles[2] % tiles[1], 1) &&
         near(a % tiles[2], b % tiles[2], 2);
}

class NablaBands final : public RowBands {
 public:
  NablaBands(const SparseCall& call, const NablaSetting& setting)
      : RowBands(setting.tiles),
        setting_(setting),
        head_size_(call.head_size()),
        queries_(MeansOfHeads(call, call.inputs.query, setting.tiles->queries)),
        keys_(MeansOfHeads(call, call.inputs.key, setting.tiles->queries)) {}

 protected:
  void ChooseRow(int64_t head, int64_t tile, kernels::ChoiceScratch* scratch,
                 std::vector<int32_t>* chosen) const override {
    const int64_t n = geometry().queries.blocks();
    std::vector<float> probability(n);
    kernels::Products(queries_[head].data() + tile * head_size_, 1, keys_[head].data(), n,
                      head_size_, probability.data());
    const float root = std::sqrt(static_cast<float>(head_size_));
    for (float& p : probability) p /= root;
    kernels::SoftmaxRows(&probability, n);
    kernels::DropMass(probability.data(), n, static_cast<float>(1.0 - setting_.mass), scratch,
                      chosen);
    if (setting_.window) AddWindow(tile, n, chosen);
  }

 private:
  void AddWindow(int64_t tile, int64_t n, std::vector<int32_t>* chosen) const {
    std::vector<int32_t> near;
    for (int64_t other = 0; other < n; ++other) {
      if (InWindow(tile, other, setting_.tiles_per_axis, *setting_.window)) {
        near.push_back(static_cast<int32_t>(other));
      }
    }
    std::vector<int32_t> both;
    std::set_union(chosen->begin(), chosen->end(), near.begin(), near.end(),
                   std::back_inserter(both));
    *chosen = std::move(both);
  }

  const NablaSetting& setting_;
  const int64_t head_size_;
  const std::vector<std::vector<float>> queries_, keys_;  // means of tiles, [head]
};

}  // namespace

std::shared_ptr<SparseSetting> NablaBackend::ReadSetting(Parameters& parameters,
                                                         const MetadataRequest& request) const {
  constexpr Axes kTile = {1, 8, 8};
  auto setting = std::make_shared<NablaSetting>();
  const Axes grid = ReadGrid(parameters, request.spec);
  const Partition tiles = TileGrid(grid, kTile);
  setting->tiles = std::make_shared<RowGeometry>(tiles, tiles);
  setting->tiles_per_axis = TilesPerAxis(grid, kTile);
  setting->mass = parameters.Real("P", 0.9, 0, 1);
  const std::vector<int64_t> window = parameters.Ints("window", {}, 3, 0);
  if (!window.empty()) setting->window = Axes{window[0], window[1], window[2]};
  return setting;
}

PlanSize NablaBackend::SizeOf(const SparseSetting& setting, const AttentionSpec&) const {
  const int64_t tiles = static_cast<const NablaSetting&>(setting).tiles->queries.blocks();
  return {.parameter = "P",
          .query_blocks = tiles,
          .key_blocks = tiles,
          .scores = tiles * tiles,
          .entries = tiles * tiles,
          .means = 2 * tiles,
          .band_bytes = tiles * 32};
}

std::unique_ptr<SparseBands> NablaBackend::MakeBands(const SparseCall& call) const {
  return std::make_unique<NablaBands>(call, static_cast<const NablaSetting&>(*call.setting));
}

}  // namespace denoised
