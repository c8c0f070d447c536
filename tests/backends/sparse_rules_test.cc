// Whole rules of the sparse backends, said once more in float64 over dense tensors: BSA's dropped
// tiles and copied queries, every mode of VMoBA's choice, SLA's linear branch with each feature
// map. Written from the papers and FastVideo's behaviour (its fastvideo/attention/backends), no
// shared code. Queries and keys are drawn with some contrast, so that probabilities tell tiles
// apart.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>

#include "backends/attention_backend.h"
#include "backends/registry.h"
#include "tests/backends/attention_oracle.h"

namespace denoised {
namespace {

using Grid = std::array<int64_t, 3>;

constexpr int64_t kHeads = 2, kSize = 16;

int64_t Cells(const Grid& grid) { return grid[0] * grid[1] * grid[2]; }

AttentionInputs Draw(const Grid& grid, double contrast, int64_t batch = 2) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(23);
  const auto draw = [&](double by) {
    return at::randn({batch, Cells(grid), kHeads, kSize}, generator, at::kFloat) * by;
  };
  AttentionInputs inputs;
  inputs.query = draw(contrast);
  inputs.key = draw(contrast);
  inputs.value = draw(1);
  inputs.scale = 1 / std::sqrt(static_cast<double>(kSize));
  return inputs;
}

struct Case {
  AttnBackend id;
  Grid grid;
  std::string json;
};

const AttentionBackend& BackendOf(const Case& c) {
  return *BackendRegistry::Default().Find(c.id)->backend;
}

std::shared_ptr<const AttentionMetadata> MetadataOf(const Case& c, const AttentionInputs& inputs) {
  AttentionSpec spec;
  spec.num_heads = kHeads;
  spec.head_size = kSize;
  spec.grid = c.grid;
  spec.q_len = spec.kv_len = Cells(c.grid);
  spec.has_projection = inputs.projection.defined();
  spec.supported = {c.id};
  return BackendOf(c).MakeBuilder()->Build({0, 10, spec, c.json});
}

at::Tensor PairsOf(const Case& c, const AttentionInputs& inputs) {
  return BackendOf(c).AttendedPairs(inputs, MetadataOf(c, inputs).get());
}

// Block number of every token, from its coordinates.
at::Tensor BlockOf(const Grid& grid, const Grid& block) {
  at::Tensor index = at::zeros({grid[0], grid[1], grid[2]}, at::kLong);
  const int64_t rows = (grid[1] + block[1] - 1) / block[1];
  const int64_t columns = (grid[2] + block[2] - 1) / block[2];
  for (int64_t t = 0; t < grid[0]; ++t) {
    for (int64_t h = 0; h < grid[1]; ++h) {
      for (int64_t w = 0; w < grid[2]; ++w) {
        index[t][h][w] = (t / block[0] * rows + h / block[1]) * columns + w / block[2];
      }
    }
  }
  return index.flatten();
}

at::Tensor Means(const at::Tensor& x, const at::Tensor& block_of) {
  const at::Tensor member = at::one_hot(block_of).to(at::kDouble);
  return at::einsum("bshd,sn->bhnd", {x.to(at::kDouble), member}) / member.sum(0).unsqueeze(1);
}

// ---- BSA ---------------------------------------------------------------------------------------

struct BsaRule {
  double keep = 0.5, mass = 0.9;
  int64_t least = 4;
};

struct BsaAnswer {
  at::Tensor pairs;   // [B, H, S, S]
  at::Tensor source;  // [B, H, S]: the token whose output each token has
  int64_t dropped_tiles = 0;
};

void AnswerTile(const AttentionInputs& inputs, const BsaRule& rule, const at::Tensor& tile_of,
                int64_t tile, int64_t b, int64_t h, BsaAnswer* answer) {
  const at::Tensor tokens = tile_of.eq(tile).nonzero().flatten();  // raster order
  const at::Tensor queries = inputs.query[b].select(1, h).index_select(0, tokens).to(at::kDouble);
  const at::Tensor unit = queries / queries.norm(2, 1, true);
  const int64_t n = tokens.size(0);
  const at::Tensor similarity = at::mv(unit, unit[n / 2]);
  const int64_t keep = std::max<int64_t>(1, static_cast<int64_t>(n * rule.keep));
  const at::Tensor kept =
      std::get<0>(similarity.argsort(0, /*descending=*/false).narrow(0, 0, keep).sort());
  const at::Tensor mean = queries.index_select(0, kept).mean(0);
  const at::Tensor keys = Means(inputs.key, tile_of)[b][h];
  const at::Tensor p = at::softmax(at::mv(keys, mean) / std::sqrt(1.0 * kSize), 0);
  const auto [sorted, order] = p.sort(0, /*descending=*/true);
  const at::Tensor before = sorted.cumsum(0) - sorted;
  const at::Tensor stays = before.lt(rule.mass).logical_or(at::arange(p.size(0)).lt(rule.least));
  const at::Tensor tiles = order.masked_select(stays);
  answer->dropped_tiles += p.size(0) - tiles.size(0);
  const at::Tensor keys_in = at::isin(tile_of, tiles);
  for (int64_t i = 0; i < keep; ++i) {
    answer->pairs[b][h][tokens[kept[i]].item<int64_t>()] = keys_in;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t nearest = (kept - i).abs().argmin().item<int64_t>();  // the first of equals
    answer->source[b][h][tokens[i].item<int64_t>()] = tokens[kept[nearest]];
  }
}

BsaAnswer AnswerBsa(const AttentionInputs& inputs, const Grid& grid, const BsaRule& rule) {
  const int64_t batch = inputs.query.size(0), n = Cells(grid);
  BsaAnswer answer{at::zeros({batch, kHeads, n, n}, at::kBool),
                   at::zeros({batch, kHeads, n}, at::kLong)};
  const at::Tensor tile_of = BlockOf(grid, {4, 4, 4});
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t tile = 0; tile <= tile_of.max().item<int64_t>(); ++tile) {
        AnswerTile(inputs, rule, tile_of, tile, b, h, &answer);
      }
    }
  }
  return answer;
}

TEST(RuleOfBsa, DropsTilesAndCopiesNeighboursAsTheFormulaSays) {
  struct Row {
    Grid grid;
    BsaRule rule;
    std::string json;
  };
  for (const Row& row : std::vector<Row>{
           {{8, 8, 16}, {}, ""},
           {{7, 9, 10}, {}, ""},
           {{7, 9, 10}, {0.3, 0.5, 1}, R"({"query_keep_ratio": 0.3, "kv_cumulative_threshold": 0.5,
                                           "min_kv_blocks": 1})"},
           {{4, 12, 12}, {1, 0.7, 2}, R"({"query_keep_ratio": 1, "kv_cumulative_threshold": 0.7,
                                          "min_kv_blocks": 2})"},
           {{5, 5, 9}, {0, 0, 3}, R"({"query_keep_ratio": 0, "kv_cumulative_threshold": 0,
                                      "min_kv_blocks": 3})"}}) {
    const Case c{AttnBackend::kBsaAttn, row.grid, row.json};
    const AttentionInputs inputs = Draw(row.grid, 4);
    const BsaAnswer want = AnswerBsa(inputs, row.grid, row.rule);
    EXPECT_GT(want.dropped_tiles, 0) << "these inputs would test nothing";
    EXPECT_TRUE(PairsOf(c, inputs).equal(want.pairs)) << row.json;
    AttentionInputs masked = inputs;
    // Rows of dropped queries get a key, so that the oracle has no empty row.
    masked.mask = want.pairs.logical_or(want.pairs.any(3, true).logical_not());
    const at::Tensor kept = OracleAttention(masked).transpose(1, 2);  // [B, H, S, D]
    const at::Tensor copied =
        kept.gather(2, want.source.unsqueeze(3).expand(kept.sizes())).transpose(1, 2);
    const at::Tensor got = BackendOf(c).Forward(inputs, MetadataOf(c, inputs).get());
    EXPECT_LE(RelativeL2(got, copied), 1e-5) << row.json;
  }
}

// ---- VMoBA -------------------------------------------------------------------------------------

// Groups of [B, H, S, chunks] as rows: [groups, members], and back.
struct Grouping {
  std::vector<int64_t> order;  // of the axes: group axes first
  int64_t group_axes;
};

Grouping GroupingOf(const std::string& type) {
  if (type == "overall") return {{0, 1, 2, 3}, 1};
  if (type == "head_global") return {{0, 1, 2, 3}, 2};
  if (type == "block") return {{0, 3, 1, 2}, 2};
  return {{0, 1, 2, 3}, 3};  // query_head
}

at::Tensor AsRows(const at::Tensor& x, const Grouping& grouping) {
  return x.permute(grouping.order).flatten(grouping.group_axes).flatten(0, grouping.group_axes - 1);
}

at::Tensor FromRows(const at::Tensor& rows, const at::Tensor& like, const Grouping& grouping) {
  std::vector<int64_t> back(4);
  for (int64_t axis = 0; axis < 4; ++axis) back[grouping.order[axis]] = axis;
  return rows.reshape(like.permute(grouping.order).sizes()).permute(back);
}

// Of rows of gates [groups, members]: what is chosen.
at::Tensor Top(const at::Tensor& gates, const at::Tensor& own, int64_t k, int64_t chunks) {
  const at::Tensor raised = gates + own.to(at::kDouble) * 1e9;
  const int64_t count = std::min(k, chunks) * gates.size(1) / chunks;
  const at::Tensor order = raised.argsort(1, /*descending=*/true).narrow(1, 0, count);
  return at::zeros(gates.sizes(), at::kBool).scatter(1, order, true);
}

at::Tensor Share(const at::Tensor& gates, const at::Tensor& own, double threshold) {
  const at::Tensor low = gates.amin(1, true), range = gates.amax(1, true) - low;
  const at::Tensor x = (gates - low) / at::where(range.le(1e-6), at::ones_like(range), range);
  const at::Tensor whole = x.sum(1, true) + 1e-6;
  const at::Tensor need =
      (threshold - x.masked_fill(own.logical_not(), 0).sum(1, true) / whole).clamp_min(0);
  const auto [sorted, order] = x.masked_fill(own, -1).sort(1, /*descending=*/true);
  const at::Tensor others = sorted.clamp_min(0);
  // Chosen while the sum before is short of the need; the first in any case; never an own chunk.
  const at::Tensor before = (others.cumsum(1) - others) / whole;
  at::Tensor stays = before.lt(need);
  stays.select(1, 0).fill_(true);
  stays = stays.logical_and(sorted.ge(0));
  return at::zeros(gates.sizes(), at::kBool).scatter(1, order, stays);
}

struct VmobaMode {
  std::string mode, type;
  double value;  // threshold, or top k
};

class RuleOfVmoba : public ::testing::TestWithParam<VmobaMode> {};

TEST_P(RuleOfVmoba, ChoosesWhatTheFormulaChooses) {
  const VmobaMode& mode = GetParam();
  const bool top = mode.mode == "topk";
  struct Shape {
    Grid grid, chunk;
    std::string json;
  };
  for (const Shape& shape : std::vector<Shape>{{{4, 6, 9}, {1, 6, 9}, "1"},
                                               {{4, 6, 9}, {4, 3, 4}, "[3, 4]"},
                                               {{5, 7, 10}, {2, 3, 5}, "[2, 3, 5]"},
                                               {{4, 9, 10}, {1, 3, 2}, "[1, 3, 2]"}}) {
    const std::string number = top ? R"(, "topk": )" + std::to_string(static_cast<int>(mode.value))
                                   : R"(, "threshold": )" + std::to_string(mode.value);
    const Case c{AttnBackend::kVmobaAttn, shape.grid,
                 R"({"chunk": )" + shape.json + R"(, "select_mode": ")" + mode.mode +
                     R"(", "select_type": ")" + mode.type + "\"" + number + "}"};
    const AttentionInputs inputs = Draw(shape.grid, 1);
    const at::Tensor chunk_of = BlockOf(shape.grid, shape.chunk);
    const at::Tensor gates =
        at::einsum("bshd,bhnd->bhsn", {inputs.query.to(at::kDouble), Means(inputs.key, chunk_of)});
    const at::Tensor own = at::one_hot(chunk_of).to(at::kBool).expand(gates.sizes());
    const Grouping grouping = GroupingOf(mode.type);
    const at::Tensor rows = AsRows(gates, grouping), own_rows = AsRows(own, grouping);
    const at::Tensor chosen =
        FromRows(top ? Top(rows, own_rows, static_cast<int64_t>(mode.value), gates.size(3))
                     : Share(rows, own_rows, mode.value),
                 gates, grouping);
    const at::Tensor attended = chosen.logical_or(own);
    ASSERT_GT(attended.logical_not().sum().item<int64_t>(), 0) << "nothing is left out";
    ASSERT_GT(attended.sum().item<int64_t>(), own.sum().item<int64_t>()) << "nothing is chosen";
    const at::Tensor pairs = attended.index_select(3, chunk_of);
    EXPECT_TRUE(PairsOf(c, inputs).equal(pairs))
        << c.json << ": " << PairsOf(c, inputs).ne(pairs).sum().item<int64_t>() << " pairs differ";
    AttentionInputs masked = inputs;
    masked.mask = pairs;
    const at::Tensor got = BackendOf(c).Forward(inputs, MetadataOf(c, inputs).get());
    EXPECT_LE(RelativeL2(got, OracleAttention(masked)), 1e-5) << c.json;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Modes, RuleOfVmoba,
    ::testing::Values(
        VmobaMode{"topk", "query_head", 2}, VmobaMode{"topk", "overall", 2},
        VmobaMode{"topk", "head_global", 2}, VmobaMode{"topk", "head_global", 3},
        VmobaMode{"threshold", "query_head", 0.25}, VmobaMode{"threshold", "query_head", 0.6},
        VmobaMode{"threshold", "overall", 0.3}, VmobaMode{"threshold", "overall", 0.7},
        VmobaMode{"threshold", "head_global", 0.45}, VmobaMode{"threshold", "block", 0.2},
        VmobaMode{"threshold", "block", 0.5}, VmobaMode{"threshold", "overall", 0}),
    [](const auto& info) {
      return info.param.mode + "_" + info.param.type + "_" + std::to_string(info.index);
    });

// ---- SLA ---------------------------------------------------------------------------------------

at::Tensor Feature(const at::Tensor& x, const std::string& name) {
  if (name == "elu") return at::where(x.gt(0), x + 1, x.exp());
  if (name == "relu") return x.clamp_min(0);
  const at::Tensor e = (x - x.amax(3, true)).exp();
  return e / e.sum(3, true);
}

TEST(RuleOfSla, LinearBranchOfEachFeatureMapIsTheFormulas) {
  const Grid grid = {3, 10, 11};
  for (const std::string name : {"softmax", "elu", "relu"}) {
    const Case c{AttnBackend::kSlaAttn, grid, R"({"feature_map": ")" + name + R"("})"};
    AttentionInputs inputs = Draw(grid, 2);
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(5);
    inputs.projection = at::randn({kSize, kSize}, generator, at::kFloat);
    inputs.projection_bias = at::randn({kSize}, generator, at::kFloat);
    const auto heads = [](const at::Tensor& x) { return x.to(at::kDouble).transpose(1, 2); };
    const at::Tensor q = Feature(heads(inputs.query), name), k = Feature(heads(inputs.key), name);
    // Token by token: no sum over keys is shared.
    const at::Tensor weights = at::matmul(q, k.transpose(2, 3));
    const at::Tensor linear =
        at::matmul(weights, heads(inputs.value)) / (weights.sum(3, true) + 1e-5);
    const at::Tensor branch = (at::matmul(linear, inputs.projection.to(at::kDouble).t()) +
                               inputs.projection_bias.to(at::kDouble))
                                  .transpose(1, 2);
    const auto metadata = MetadataOf(c, inputs);
    EXPECT_LE(RelativeL2(BackendOf(c).AddedBranch(inputs, metadata.get()), branch), 1e-5) << name;
    AttentionInputs masked = inputs;
    masked.mask = PairsOf(c, inputs);
    const at::Tensor got = BackendOf(c).Forward(inputs, metadata.get());
    EXPECT_LE(RelativeL2(got, OracleAttention(masked) + branch), 1e-5) << name;
  }
}

// Attention among the tiles' means, spread over their tokens and gated, in float64.
at::Tensor CoarseByFormula(const AttentionInputs& inputs, const at::Tensor& tile_of) {
  const auto means = [&](const at::Tensor& x) { return Means(x, tile_of); };
  const double root = std::sqrt(static_cast<double>(inputs.query.size(3)));
  const at::Tensor scores =
      at::matmul(means(inputs.query), means(inputs.key).transpose(2, 3)) / root;
  const at::Tensor coarse = at::matmul(at::softmax(scores, -1), means(inputs.value));
  return coarse.index_select(2, tile_of).transpose(1, 2) * inputs.gate.to(at::kDouble);
}

// The coarse branch is the formula's, gated and added in float32 and rounded once, whatever the
// head size and the gate's strides. The tiles are no multiple of what a task has of them.
TEST(VsaGateTest, AddsTheBranchInFloat32) {
  const Case gated{AttnBackend::kVideoSparseAttn, {3, 5, 10}, R"({"tile": [2, 2, 4]})"};
  const at::Tensor tile_of = BlockOf(gated.grid, {2, 2, 4});
  const int64_t tokens = Cells(gated.grid);
  Case fine = gated;
  fine.json = R"({"tile": [2, 2, 4], "coarse": false})";
  for (const int64_t size : {3, 8, 20, 64}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      AttentionInputs inputs;
      const auto draw = [&](int64_t s) { return at::randn({2, tokens, kHeads, s}).to(dtype); };
      inputs.query = draw(size);
      inputs.key = draw(size);
      inputs.value = draw(size);
      inputs.scale = 1;
      // A view with room between its heads.
      inputs.gate = at::randn({2, tokens, kHeads, 2 * size}).to(dtype).narrow(3, size / 2, size);
      const auto run = [&](const Case& c) {
        AttentionSpec spec;
        spec.num_heads = kHeads;
        spec.head_size = size;
        spec.dtype = dtype == at::kFloat      ? DType::kFloat32
                     : dtype == at::kBFloat16 ? DType::kBFloat16
                                              : DType::kFloat16;
        spec.grid = c.grid;
        spec.q_len = spec.kv_len = Cells(c.grid);
        spec.has_gate = true;
        const auto metadata = BackendOf(c).MakeBuilder()->Build({0, 10, spec, c.json});
        return std::pair(BackendOf(c).Forward(inputs, metadata.get()),
                         BackendOf(c).AddedBranch(inputs, metadata.get()));
      };
      const auto [out, branch] = run(gated);
      // Between the branches float16 stays float32, so that there is no telling its bits.
      const at::Tensor sum = run(fine).first.to(at::kFloat) + branch;
      if (dtype == at::kHalf) {
        EXPECT_TRUE(at::allclose(out.to(at::kFloat), sum, 2e-3, 2e-3)) << size;
      } else {
        EXPECT_TRUE(at::equal(out, sum.to(dtype))) << size << " " << dtype;
      }
      const at::Tensor formula = CoarseByFormula(inputs, tile_of);
      const double error = (branch - formula).norm().item<double>();
      const double limit = dtype == at::kBFloat16 ? 1e-2 : 1e-5;  // means and scores are rounded
      EXPECT_LE(error, limit * formula.norm().item<double>()) << size << " " << dtype;
      EXPECT_GT(branch.abs().max().item<float>(), 0.1);
    }
  }
}

}  // namespace
}  // namespace denoised
