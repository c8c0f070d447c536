// Masks of the sparse backends, index by index, against rules written out in float64 over dense
// tensors: no block lists, no shared code. Random inputs leave no ties.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "backends/attention_backend.h"
#include "backends/error.h"
#include "backends/registry.h"
#include "tests/backends/attention_oracle.h"

namespace denoised {
namespace {

using Grid = std::array<int64_t, 3>;

struct Sample {
  AttnBackend id;
  Grid grid;
  std::string json;
  int64_t text = 0;
  int layer = 0;
  int64_t step = 0;
};

int64_t Cells(const Grid& grid) { return grid[0] * grid[1] * grid[2]; }

AttentionInputs Draw(const Sample& sample) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(11);
  const std::vector<int64_t> shape = {2, Cells(sample.grid) + sample.text, 2, 16};
  AttentionInputs inputs;
  inputs.query = at::randn(shape, generator, at::kFloat);
  inputs.key = at::randn(shape, generator, at::kFloat);
  inputs.value = at::randn(shape, generator, at::kFloat);
  inputs.layer_index = sample.layer;
  return inputs;
}

std::shared_ptr<const AttentionMetadata> MetadataOf(const Sample& sample) {
  AttentionSpec spec;
  spec.num_heads = 2;
  spec.head_size = 16;
  spec.grid = sample.grid;
  spec.q_len = spec.kv_len = Cells(sample.grid) + sample.text;
  spec.supported = {sample.id};
  const AttentionBackend& backend = *BackendRegistry::Default().Find(sample.id)->backend;
  return backend.MakeBuilder()->Build({sample.step, 10, spec, sample.json});
}

at::Tensor PairsOf(const Sample& sample) {
  const AttentionBackend& backend = *BackendRegistry::Default().Find(sample.id)->backend;
  return backend.AttendedPairs(Draw(sample), MetadataOf(sample).get());
}

// Tile number of every token, from the token's coordinates.
at::Tensor TileOf(const Grid& grid, const Grid& tile) {
  at::Tensor index = at::zeros({grid[0], grid[1], grid[2]}, at::kLong);
  const int64_t rows = (grid[1] + tile[1] - 1) / tile[1],
                columns = (grid[2] + tile[2] - 1) / tile[2];
  for (int64_t t = 0; t < grid[0]; ++t) {
    for (int64_t h = 0; h < grid[1]; ++h) {
      for (int64_t w = 0; w < grid[2]; ++w) {
        index[t][h][w] = (t / tile[0] * rows + h / tile[1]) * columns + w / tile[2];
      }
    }
  }
  return index.flatten();
}

// [tokens, blocks] one-hot rows, and means [B, H, blocks, D] in float64.
at::Tensor Membership(const at::Tensor& block_of) { return at::one_hot(block_of).to(at::kDouble); }

at::Tensor Means(const at::Tensor& x, const at::Tensor& block_of) {
  const at::Tensor member = Membership(block_of);
  return at::einsum("bshd,sn->bhnd", {x.to(at::kDouble), member}) / member.sum(0).unsqueeze(1);
}

// [B, H, blocks, blocks] of which the k largest of each row are true.
at::Tensor TopOfRows(const at::Tensor& scores, int64_t k) {
  const at::Tensor chosen = std::get<1>(scores.topk(k, -1));
  return at::zeros(scores.sizes(), at::kBool).scatter(-1, chosen, true);
}

at::Tensor ToTokens(const at::Tensor& block_mask, const at::Tensor& query_block,
                    const at::Tensor& key_block) {
  return block_mask.index_select(2, query_block).index_select(3, key_block);
}

TEST(Masks, VsaKeepsTheTopTilesOfARaggedGrid) {
  for (const Grid& tile : {Grid{4, 4, 4}, Grid{1, 3, 5}, Grid{6, 8, 8}}) {
    const std::string side =
        std::to_string(tile[0]) + "," + std::to_string(tile[1]) + "," + std::to_string(tile[2]);
    const Sample sample{
        AttnBackend::kVideoSparseAttn, {7, 9, 10}, R"({"top_k": 2, "tile": [)" + side + "]}"};
    const AttentionInputs inputs = Draw(sample);
    const at::Tensor tile_of = TileOf(sample.grid, tile);
    const at::Tensor scores =
        at::matmul(Means(inputs.query, tile_of), Means(inputs.key, tile_of).transpose(2, 3));
    EXPECT_TRUE(PairsOf(sample).equal(ToTokens(TopOfRows(scores, 2), tile_of, tile_of))) << side;
  }
}

TEST(Masks, SlaKeepsTheTopRunsOfKeys) {
  const Sample sample{AttnBackend::kSlaAttn, {3, 10, 15}, R"({"ratio": 0.3})"};
  const AttentionInputs inputs = Draw(sample);
  const at::Tensor position = at::arange(450);
  const at::Tensor query_block = position.floor_divide(128), key_block = position.floor_divide(64);
  const at::Tensor scores =
      at::matmul(Means(inputs.query, query_block), Means(inputs.key, key_block).transpose(2, 3));
  EXPECT_TRUE(PairsOf(sample).equal(ToTokens(TopOfRows(scores, 2), query_block, key_block)));
}

// The least number of keys whose mass reaches P is what stays when the smallest below 1 - P go.
TEST(Masks, NablaKeepsMassAndWindow) {
  const Sample sample{AttnBackend::kNablaAttn, {3, 20, 20}, R"({"P": 0.6, "window": [1, 3, 1]})"};
  const AttentionInputs inputs = Draw(sample);
  const at::Tensor tile_of = TileOf(sample.grid, {1, 8, 8});
  const at::Tensor p = at::softmax(
      at::matmul(Means(inputs.query, tile_of), Means(inputs.key, tile_of).transpose(2, 3)) / 4, -1);
  const auto [sorted, order] = p.sort(-1);
  at::Tensor mask = at::zeros(p.sizes(), at::kBool).scatter(-1, order, sorted.cumsum(-1).ge(0.4));
  for (int64_t a = 0; a < 27; ++a) {
    for (int64_t b = 0; b < 27; ++b) {
      const bool near = a / 9 == b / 9 && std::abs(a / 3 % 3 - b / 3 % 3) <= 1 && a % 3 == b % 3;
      if (near) mask.select(2, a).select(2, b).fill_(true);
    }
  }
  EXPECT_TRUE(PairsOf(sample).equal(ToTokens(mask, tile_of, tile_of)));
}

TEST(Masks, VmobaChoosesChunksForEachQuery) {
  for (int layer : {0, 1, 2}) {
    const Sample sample{AttnBackend::kVmobaAttn,
                        {4, 6, 9},
                        R"({"chunk": [1, [3, 4], [2, 3, 5]], "select_mode": "topk", "topk": 2})",
                        0,
                        layer};
    const Grid shapes[] = {{1, 6, 9}, {4, 3, 4}, {2, 3, 5}};
    const AttentionInputs inputs = Draw(sample);
    const at::Tensor chunk_of = TileOf(sample.grid, shapes[layer]);
    const at::Tensor own = Membership(chunk_of).to(at::kBool);  // [S, chunks]
    const at::Tensor gates =
        at::einsum("bshd,bhnd->bhsn", {inputs.query.to(at::kDouble), Means(inputs.key, chunk_of)});
    const at::Tensor chosen = TopOfRows(gates.masked_fill(own, 1e9), 2);
    EXPECT_TRUE(PairsOf(sample).equal(chosen.index_select(3, chunk_of))) << layer;
  }
}

// The window rule said token by token: clamp the centre, lower bound last.
TEST(Masks, StaAttendsAWindowAndTextAttendsAll) {
  const Sample sample{AttnBackend::kSlidingTileAttn,
                      {5, 9, 7},
                      R"({"tile": [2, 3, 2], "window": [1, 3, 3], "text_len": 4})",
                      6};
  const Grid tile = {2, 3, 2}, tiles = {3, 3, 4}, window = {1, 3, 3};
  const int64_t video = 315, total = 321;
  at::Tensor want = at::zeros({total, total}, at::kBool);
  want.narrow(1, video, 4).fill_(true);
  want.narrow(0, video, 6).narrow(1, 0, video).fill_(true);
  const auto near = [&](int64_t q, int64_t k, int axis) {
    const int64_t r = window[axis] / 2, n = tiles[axis];
    int64_t centre = q / tile[axis];
    if (centre > n - 1 - r) centre = n - 1 - r;
    if (centre < r) centre = r;
    return std::abs(k / tile[axis] - centre) <= r;
  };
  for (int64_t q = 0; q < video; ++q) {
    for (int64_t k = 0; k < video; ++k) {
      if (near(q / 63, k / 63, 0) && near(q / 7 % 9, k / 7 % 9, 1) && near(q % 7, k % 7, 2)) {
        want[q][k] = true;
      }
    }
  }
  EXPECT_TRUE(PairsOf(sample).equal(want.expand({2, 2, total, total})));
}

TEST(Masks, StaTakesAWindowFromTheStrategyOfStepLayerAndHead) {
  Sample sample{AttnBackend::kSlidingTileAttn,
                {1, 1, 9},
                R"({"tile": [1, 1, 1], "strategy": {"3_2_1": [1, 1, 3]}})"};
  sample.step = 3;
  sample.layer = 2;
  const at::Tensor pairs = PairsOf(sample).sum(3);
  EXPECT_TRUE(pairs.select(1, 0).eq(9).all().item<bool>()) << "no entry: everything";
  EXPECT_TRUE(pairs.select(1, 1).eq(3).all().item<bool>());
}

TEST(Masks, DenseStepsAndLayersAttendEverything) {
  Sample sample{AttnBackend::kVideoSparseAttn,
                {4, 8, 8},
                R"({"top_k": 1, "dense_first_steps": 2, "dense_layers": [5]})"};
  EXPECT_FALSE(PairsOf(sample).defined());
  sample.step = 2;
  EXPECT_TRUE(PairsOf(sample).defined());
  sample.layer = 5;
  EXPECT_FALSE(PairsOf(sample).defined());
  const AttentionInputs inputs = Draw(sample);
  const AttentionBackend& vsa =
      *BackendRegistry::Default().Find(AttnBackend::kVideoSparseAttn)->backend;
  EXPECT_LE(RelativeL2(vsa.Forward(inputs, MetadataOf(sample).get()), OracleAttention(inputs)),
            1e-5);
}

TEST(Parameters, WhatDoesNotFitIsRefusedByItsName) {
  struct Bad {
    AttnBackend id;
    const char* json;
    const char* field;
  };
  for (const Bad& bad : std::vector<Bad>{
           {AttnBackend::kVideoSparseAttn, R"({"sparsity": 1.5})", "sparsity"},
           {AttnBackend::kVideoSparseAttn, R"({"sparsity": "0.5"})", "sparsity"},
           {AttnBackend::kVideoSparseAttn, R"({"sparsity": 0.5, "top_k": 3})", "top_k"},
           {AttnBackend::kVideoSparseAttn, R"({"top_k": 0})", "top_k"},
           {AttnBackend::kVideoSparseAttn, R"({"tile": [4, 4]})", "tile"},
           {AttnBackend::kVideoSparseAttn, R"({"tile": [4, 4, 0]})", "tile"},
           {AttnBackend::kVideoSparseAttn, R"({"grid": [1, 1, 1]})", "grid"},
           {AttnBackend::kVideoSparseAttn, R"({"sparsety": 0.5})", "sparsety"},
           {AttnBackend::kVideoSparseAttn, R"({"dense_layers": [-1]})", "dense_layers"},
           {AttnBackend::kSlidingTileAttn, R"({"strategy": "a/file.json"})", "strategy"},
           {AttnBackend::kSlidingTileAttn, R"({"strategy": {"1_2": [1, 1, 1]}})", "strategy"},
           {AttnBackend::kSlidingTileAttn, R"({"text_len": 1})", "text_len"},
           {AttnBackend::kVmobaAttn, R"({"chunk": [1, 2, 3, 4]})", "chunk"},
           {AttnBackend::kVmobaAttn, R"({"chunk": 0})", "chunk"},
           {AttnBackend::kVmobaAttn, R"({"select_type": "block", "select_mode": "topk"})",
            "select_type"},
           {AttnBackend::kVmobaAttn, R"({"select_mode": "best"})", "select_mode"},
           {AttnBackend::kSlaAttn, R"({"feature_map": "gelu"})", "feature_map"},
           {AttnBackend::kNablaAttn, R"({"P": -0.1})", "P"},
           {AttnBackend::kBsaAttn, R"({"min_kv_blocks": 0})", "min_kv_blocks"}}) {
    try {
      MetadataOf({bad.id, {4, 8, 8}, bad.json});
      ADD_FAILURE() << bad.json << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kInvalidArgument) << bad.json;
      EXPECT_EQ(error.field(), "attention.parameters." + std::string(bad.field)) << bad.json;
    }
  }
}

TEST(Parameters, WhatIsNoJsonObjectIsRefused) {
  const std::string deep = R"({"a": )" + std::string(40, '[') + std::string(40, ']') + "}";
  for (const std::string& json :
       {std::string("{"), std::string("[]"), std::string("3"), std::string("\xff"), deep,
        std::string(R"({"top_k": 1, "top_k": 2})")}) {
    EXPECT_THROW(MetadataOf({AttnBackend::kVideoSparseAttn, {4, 8, 8}, json}), Error) << json;
  }
}

TEST(Geometry, WhatCannotBeServedIsRefusedWithASentence) {
  AttentionSpec spec;
  spec.q_len = spec.kv_len = 100;
  spec.supported = AllAttnBackends();
  const auto why = [&](AttnBackend id) {
    return BackendRegistry::Default().WhyNot(id, spec, QueryCpu()).value_or("");
  };
  EXPECT_NE(why(AttnBackend::kVideoSparseAttn).find("video grid"), std::string::npos);
  spec.grid = {1, 10, 9};
  EXPECT_NE(why(AttnBackend::kBsaAttn).find("1x10x9"), std::string::npos);
  EXPECT_EQ(why(AttnBackend::kSlidingTileAttn), "") << "ten tokens of text";
  EXPECT_EQ(why(AttnBackend::kSlaAttn), "");
  spec.kv_len = 50;
  EXPECT_NE(why(AttnBackend::kSlaAttn).find("100 and 50"), std::string::npos);
  spec.head_size = 2048;
  EXPECT_NE(why(AttnBackend::kFlashAttn).find("2048"), std::string::npos);
}

}  // namespace
}  // namespace denoised
