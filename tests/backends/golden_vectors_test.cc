// Golden vectors of the sparse backends. Inputs over the flat index n of [S, H, D]:
// q = sin(.37n), k = cos(.23n + 1), v = sin(.11n + 2), gate = cos(.05n); B = 1, H = 2, D = 8.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "backends/attention_backend.h"
#include "backends/registry.h"
#include "backends/tiling.h"
#include "tests/backends/attention_oracle.h"

namespace denoised {
namespace {

at::Tensor Wave(int64_t tokens, double step, double start, bool cosine) {
  const at::Tensor angle = at::arange(tokens * 2 * 8, at::kDouble) * step + start;
  return (cosine ? angle.cos() : angle.sin()).to(at::kFloat).view({1, tokens, 2, 8});
}

AttentionInputs Waves(int64_t tokens, bool gated = false) {
  AttentionInputs inputs;
  inputs.query = Wave(tokens, .37, 0, false);
  inputs.key = Wave(tokens, .23, 1, true);
  inputs.value = Wave(tokens, .11, 2, false);
  if (gated) inputs.gate = Wave(tokens, .05, 0, true);
  return inputs;
}

struct Result {
  at::Tensor out;    // float64
  at::Tensor pairs;  // what was attended
  double sum() const { return out.sum().item<double>(); }
  double abs() const { return out.abs().sum().item<double>(); }
};

Result Attend(AttnBackend id, const AttentionInputs& inputs, Axes grid, const std::string& json) {
  AttentionSpec spec;
  spec.num_heads = inputs.query.size(2);
  spec.head_size = inputs.query.size(3);
  spec.q_len = spec.kv_len = inputs.query.size(1);
  spec.grid = grid;
  spec.has_gate = true;
  spec.supported = {id};
  const BackendRegistry& registry = BackendRegistry::Default();
  const auto reason = registry.WhyNot(id, spec, QueryCpu());
  EXPECT_EQ(reason.value_or(""), "");
  const AttentionBackend& backend = *registry.Find(id)->backend;
  const auto metadata = backend.MakeBuilder()->Build({0, 1, spec, json});
  return {backend.Forward(inputs, metadata.get()).to(at::kDouble),
          backend.AttendedPairs(inputs, metadata.get())};
}

// Key blocks of length `block` that query 0 of each block attends, as counts.
std::vector<int64_t> BlocksKept(const at::Tensor& pairs, int64_t head, int64_t block) {
  std::vector<int64_t> kept;
  const at::Tensor one = pairs.select(0, 0).select(0, head);
  for (int64_t q = 0; q < one.size(0); q += block) {
    kept.push_back(one.select(0, q).sum().item<int64_t>() / block);
  }
  return kept;
}

TEST(GoldenTiles, OrderOfARaggedGridIsTileByTile) {
  const Partition tiles = TileGrid({2, 3, 5}, {2, 2, 2});
  EXPECT_EQ(tiles.order,
            (std::vector<int32_t>{0,  1, 5, 6,  15, 16, 20, 21, 2,  3,  7,  8,  17, 18, 22,
                                  23, 4, 9, 19, 24, 10, 11, 25, 26, 12, 13, 27, 28, 14, 29}));
  EXPECT_EQ(tiles.lengths, (std::vector<int32_t>{8, 8, 4, 4, 4, 2}));
}

TEST(GoldenTiles, SizesAreProductsOfTheRemainders) {
  EXPECT_EQ(TileGrid({5, 6, 7}, {4, 4, 4}).lengths,
            (std::vector<int32_t>{64, 48, 32, 24, 16, 12, 8, 6}));
}

// Grid, tokens, tiles, smallest tile, and key tiles kept at sparsity .5, .8 and .9.
TEST(GoldenTiles, GeometriesOfTheFamilysVideos) {
  struct Row {
    Axes grid;
    int64_t tokens, tiles, smallest;
  };
  for (const Row& row : std::vector<Row>{{{21, 30, 52}, 32760, 624, 8},
                                         {{16, 28, 52}, 23296, 364, 64},
                                         {{20, 28, 52}, 29120, 455, 64},
                                         {{21, 45, 80}, 75600, 1440, 4},
                                         {{31, 22, 40}, 27280, 480, 24}}) {
    const Partition tiles = TileGrid(row.grid, {4, 4, 4});
    EXPECT_EQ(static_cast<int64_t>(tiles.order.size()), row.tokens);
    EXPECT_EQ(tiles.blocks(), row.tiles);
    EXPECT_EQ(*std::min_element(tiles.lengths.begin(), tiles.lengths.end()), row.smallest);
  }
}

TEST(GoldenVsa, GatedTopThree) {
  const Result got =
      Attend(AttnBackend::kVideoSparseAttn, Waves(5 * 6 * 7, true), {5, 6, 7}, R"({"top_k": 3})");
  EXPECT_NEAR(got.sum(), -24.731362842, 2e-4);
  EXPECT_NEAR(got.abs(), 320.245908467, 2e-4);
  const double first[] = {-.169278585, -.169664151, -.167953732, -.164160241};
  for (int d = 0; d < 4; ++d) {
    EXPECT_NEAR(got.out[0][0][0][d].item<double>(), first[d], 1e-6);
  }
}

TEST(GoldenVsa, KeepsTheTilesThatScoreHighest) {
  const Result got =
      Attend(AttnBackend::kVideoSparseAttn, Waves(5 * 6 * 7, true), {5, 6, 7}, R"({"top_k": 3})");
  const Partition tiles = TileGrid({5, 6, 7}, {4, 4, 4});
  const std::vector<std::vector<int64_t>> kept = {{2, 4, 7}, {2, 5, 7}, {1, 3, 6}, {1, 4, 7}};
  std::vector<int64_t> first_of_tile = {0};
  for (int32_t length : tiles.lengths) first_of_tile.push_back(first_of_tile.back() + length);
  for (size_t query = 0; query < kept.size(); ++query) {
    for (int64_t key = 0; key < tiles.blocks(); ++key) {
      const bool wanted = std::count(kept[query].begin(), kept[query].end(), key) > 0;
      EXPECT_EQ(got.pairs[0][0][tiles.order[first_of_tile[query]]][tiles.order[first_of_tile[key]]]
                    .item<bool>(),
                wanted)
          << query << " " << key;
    }
  }
}

TEST(GoldenVsa, AllTilesWithoutAGateIsDensePlusCoarse) {
  const Result got =
      Attend(AttnBackend::kVideoSparseAttn, Waves(5 * 6 * 7), {5, 6, 7}, R"({"sparsity": 0})");
  EXPECT_NEAR(got.sum(), -66.183519309, 2e-4);
}

TEST(GoldenVsa, BudgetIsCountedInDoubles) {
  // 1 - 0.7 is above 0.3, so that three tenths of ten tiles are four.
  const AttentionInputs inputs = Waves(10);
  const Result got = Attend(AttnBackend::kVideoSparseAttn, inputs, {1, 1, 10},
                            R"({"sparsity": 0.7, "tile": [1, 1, 1]})");
  EXPECT_EQ(BlocksKept(got.pairs, 0, 1), std::vector<int64_t>(10, 4));
}

struct VmobaRow {
  const char* json;
  double sum, abs;
};

class GoldenVmoba : public ::testing::TestWithParam<VmobaRow> {};

TEST_P(GoldenVmoba, SumsAreThoseOfTheOriginal) {
  const Result got = Attend(AttnBackend::kVmobaAttn, Waves(4 * 4 * 6), {4, 4, 6}, GetParam().json);
  EXPECT_NEAR(got.sum(), GetParam().sum, 2e-4);
  EXPECT_NEAR(got.abs(), GetParam().abs, 2e-4);
}

INSTANTIATE_TEST_SUITE_P(
    Modes, GoldenVmoba,
    ::testing::Values(
        VmobaRow{R"({"chunk": 1, "select_mode": "topk", "topk": 2})", -28.90652, 40.84381},
        VmobaRow{R"({"chunk": [2, 3], "select_mode": "topk", "topk": 2})", 9.87646, 28.51097},
        VmobaRow{R"({"chunk": [2, 2, 3], "select_mode": "topk", "topk": 3})", -63.59072, 97.47221},
        VmobaRow{R"({"chunk": [2, 2, 3], "threshold": 0.25})", -5.87327, 136.88049}));

TEST(GoldenVmobaDense, OneChunkOrAllOfThemIsDense) {
  const AttentionInputs inputs = Waves(4 * 4 * 6);
  const at::Tensor dense = OracleAttention(inputs);
  for (const char* json : {R"({"chunk": [2, 2, 3], "select_mode": "topk", "topk": 1})",
                           R"({"chunk": [2, 2, 3], "select_mode": "topk", "topk": 99})"}) {
    const Result got = Attend(AttnBackend::kVmobaAttn, inputs, {4, 4, 6}, json);
    EXPECT_LE(RelativeL2(got.out, dense), 1e-5) << json;
  }
}

TEST(GoldenVmobaDense, OwnChunkOnlyAttendsItsOwnChunk) {
  const Result got =
      Attend(AttnBackend::kVmobaAttn, Waves(4 * 4 * 6), {4, 4, 6},
             R"({"chunk": 1, "select_mode": "topk", "topk": 1, "own_chunk_only": true})");
  EXPECT_EQ(got.pairs.sum(3).min().item<int64_t>(), 24);
  EXPECT_EQ(got.pairs.sum(3).max().item<int64_t>(), 24);
}

TEST(GoldenBsa, DefaultsGiveTheOriginalsSums) {
  for (const char* json : {"", R"({"kv_cumulative_threshold": 0.5})"}) {
    const Result got = Attend(AttnBackend::kBsaAttn, Waves(4 * 8 * 8), {4, 8, 8}, json);
    EXPECT_NEAR(got.sum(), -13.299537820, 2e-4) << json;
    EXPECT_NEAR(got.abs(), 16.528396023, 2e-4) << json;
  }
}

// By a float64 program of the rule (16 to 324 tiles dropped), which gives the sums above as well.
TEST(GoldenBsa, SumsWhereTilesAreDropped) {
  struct Row {
    Axes grid;
    const char* json;
    double sum, abs;
  };
  const char* few = R"({"kv_cumulative_threshold": 0.5, "min_kv_blocks": 1})";
  for (const Row& row : std::vector<Row>{{{4, 8, 8}, few, 78.076640458, 180.764341272},
                                         {{8, 8, 12}, "", 8.929194692, 36.788766572},
                                         {{8, 8, 12}, few, 19.992676390, 64.944539257},
                                         {{7, 9, 10}, "", -14.741604517, 41.907751852},
                                         {{7, 9, 10}, few, -87.613085432, 191.338117743}}) {
    const Result got = Attend(AttnBackend::kBsaAttn, Waves(Product(row.grid)), row.grid, row.json);
    EXPECT_NEAR(got.sum(), row.sum, 5e-4) << row.grid[0] << " " << row.json;
    EXPECT_NEAR(got.abs(), row.abs, 5e-4) << row.grid[0] << " " << row.json;
  }
}

TEST(GoldenNabla, KeepsBlocksByMass) {
  const AttentionInputs inputs = Waves(512);
  EXPECT_EQ(BlocksKept(Attend(AttnBackend::kNablaAttn, inputs, {8, 8, 8}, "").pairs, 0, 64),
            std::vector<int64_t>(8, 8));
  EXPECT_EQ(
      BlocksKept(Attend(AttnBackend::kNablaAttn, inputs, {8, 8, 8}, R"({"P": 0.5})").pairs, 0, 64),
      std::vector<int64_t>(8, 4));
}

TEST(GoldenSla, SparsePartWithoutAProjection) {
  const Result got = Attend(AttnBackend::kSlaAttn, Waves(300), {3, 10, 10}, R"({"ratio": 0.5})");
  EXPECT_NEAR(got.sum(), -8.123189, 2e-4);
  EXPECT_NEAR(got.abs(), 50.773525, 2e-4);
}

// Tiles of one cell make a window of tiles a window of tokens.
struct StaRow {
  Axes window, at, low, high;
};

TEST(GoldenSta, WindowsShiftInwardAtTheBorders) {
  const Axes grid = {5, 6, 10};
  const AttentionInputs inputs = Waves(Product(grid));
  for (const StaRow& row : std::vector<StaRow>{{{3, 3, 3}, {0, 0, 0}, {0, 0, 0}, {2, 2, 2}},
                                               {{3, 3, 3}, {2, 3, 5}, {1, 2, 4}, {3, 4, 6}},
                                               {{3, 3, 3}, {4, 5, 9}, {2, 3, 7}, {4, 5, 9}},
                                               {{1, 6, 5}, {2, 0, 9}, {2, 0, 5}, {2, 5, 9}},
                                               {{3, 6, 10}, {0, 0, 0}, {0, 0, 0}, {2, 5, 9}}}) {
    const std::string window = std::to_string(row.window[0]) + "," + std::to_string(row.window[1]) +
                               "," + std::to_string(row.window[2]);
    const Result got = Attend(AttnBackend::kSlidingTileAttn, inputs, grid,
                              R"({"tile": [1, 1, 1], "window": [)" + window + "]}");
    const int64_t query = (row.at[0] * grid[1] + row.at[1]) * grid[2] + row.at[2];
    at::Tensor want = at::zeros({grid[0], grid[1], grid[2]}, at::kBool);
    for (int64_t t = row.low[0]; t <= row.high[0]; ++t) {
      for (int64_t h = row.low[1]; h <= row.high[1]; ++h) {
        for (int64_t w = row.low[2]; w <= row.high[2]; ++w) want[t][h][w] = true;
      }
    }
    EXPECT_TRUE(got.pairs[0][1][query].equal(want.flatten())) << window;
  }
}

}  // namespace
}  // namespace denoised
