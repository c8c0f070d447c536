#include "tests/bench/planted_tiles.h"

#include <cmath>
#include <vector>

namespace denoised {
namespace {

constexpr double kStep = 3;  // noise of a tile's mean is an eighth

}  // namespace

PlantedTiles::PlantedTiles(const Axes& grid, int64_t heads, int64_t head_size, int64_t groups,
                           at::TensorOptions options)
    : tiles_(TileGrid(grid, {4, 4, 4})), groups_(groups) {
  TORCH_CHECK(tiles_.blocks() % groups == 0, tiles_.blocks(), " tiles in ", groups, " groups");
  const std::vector<int32_t> tile_of = tiles_.BlockOfToken();
  tile_of_ =
      at::tensor(at::ArrayRef<int32_t>(tile_of), at::kInt).to(options.device()).to(at::kLong);
  at::manual_seed(Product(grid));
  const at::Tensor axes = at::eye(head_size, options).mul(kStep);
  const at::Tensor step = axes.index_select(0, tile_of_.remainder(groups)).unsqueeze(1);
  const auto draw = [&] { return at::randn({1, Product(grid), heads, head_size}, options); };
  inputs_.query = draw().add_(step);
  inputs_.key = draw().add_(step);
  inputs_.value = draw();
  inputs_.gate = draw();
  inputs_.scale = 1 / std::sqrt(static_cast<double>(head_size));
}

at::Tensor PlantedTiles::TokensOf(int64_t tile) const {
  return tile_of_.eq(tile).nonzero().squeeze(1);
}

at::Tensor PlantedTiles::TokensOfGroup(int64_t group) const {
  return tile_of_.remainder(groups_).eq(group).nonzero().squeeze(1);
}

// [H, tiles, D] float64.
at::Tensor PlantedTiles::TileMeans(const at::Tensor& x) const {
  const at::Tensor rows = x[0].to(at::kFloat);
  const at::Tensor sums = at::zeros({tiles_.blocks(), x.size(2), x.size(3)}, rows.options())
                              .index_add_(0, tile_of_, rows);
  const at::Tensor counts = tile_of_.bincount({}, tiles_.blocks()).view({-1, 1, 1});
  return (sums.to(at::kDouble) / counts).transpose(0, 1);
}

// [H, tokens of the tile, D] float64.
at::Tensor PlantedTiles::Wanted(int64_t tile) const {
  const auto rows = [](const at::Tensor& x, const at::Tensor& tokens) {
    return x[0].index_select(0, tokens).to(at::kDouble).transpose(0, 1);
  };
  const auto attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return at::bmm(at::softmax(at::bmm(q, k.transpose(1, 2)) * inputs_.scale, -1), v);
  };
  const at::Tensor queries = TokensOf(tile), keys = TokensOfGroup(tile % groups_);
  const at::Tensor sparse =
      attend(rows(inputs_.query, queries), rows(inputs_.key, keys), rows(inputs_.value, keys));
  const at::Tensor coarse = attend(TileMeans(inputs_.query).narrow(1, tile, 1),
                                   TileMeans(inputs_.key), TileMeans(inputs_.value));
  return sparse + coarse * rows(inputs_.gate, queries);
}

double PlantedTiles::ErrorOf(const at::Tensor& out) const {
  double difference = 0, size = 0;
  for (const int64_t tile : {int64_t{0}, tiles_.blocks() / 3, 2 * tiles_.blocks() / 3}) {
    // The mean of a few tokens is too noisy to tell the groups apart.
    TORCH_CHECK(tiles_.lengths[tile] == 64, "tile ", tile, " has ", tiles_.lengths[tile]);
    const at::Tensor want = Wanted(tile);
    const at::Tensor got = out[0].index_select(0, TokensOf(tile)).to(at::kDouble).transpose(0, 1);
    difference += (got - want).square().sum().item<double>();
    size += want.square().sum().item<double>();
  }
  return std::sqrt(difference / size);
}

}  // namespace denoised
