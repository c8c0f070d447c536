// Parameters as backends read them: one text for one meaning; and which kernel they lead to.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/attention_backend.h"
#include "backends/error.h"
#include "backends/registry.h"

namespace denoised {
namespace {

using B = AttnBackend;

AttentionSpec VideoSpec() {
  AttentionSpec spec;
  spec.num_heads = 2;
  spec.head_size = 16;
  spec.grid = {4, 8, 8};
  spec.q_len = spec.kv_len = 256;
  spec.supported = AllAttnBackends();
  return spec;
}

std::string Canonical(B backend, const std::string& json, const AttentionSpec& spec = VideoSpec()) {
  return BackendRegistry::Default().CanonicalParameters(backend, spec, json);
}

TEST(CanonicalParameters, DefaultsAreFilledInAndKeysSorted) {
  EXPECT_EQ(Canonical(B::kVideoSparseAttn, ""),
            R"({"coarse":false,"dense_first_steps":0,"dense_layers":[],"sparsity":0.8,)"
            R"("tile":[4,4,4]})");
  EXPECT_EQ(Canonical(B::kSlidingTileAttn, ""),
            R"({"dense_first_steps":0,"dense_layers":[],"text_len":0,"tile":[6,8,8],)"
            R"("window":[3,3,3]})");
  EXPECT_EQ(Canonical(B::kVmobaAttn, ""),
            R"({"chunk":[[2.0],[3,4],[4,6,4]],"dense_first_steps":0,"dense_layers":[],)"
            R"("own_chunk_only":false,"select_mode":"threshold","select_type":"query_head",)"
            R"("threshold":0.25,"topk":[3,3,3]})");
  EXPECT_EQ(Canonical(B::kSlaAttn, ""),
            R"({"block_k":64,"block_q":128,"dense_first_steps":0,"dense_layers":[],)"
            R"("feature_map":"softmax","ratio":0.1})");
  EXPECT_EQ(Canonical(B::kBsaAttn, ""),
            R"({"dense_first_steps":0,"dense_layers":[],"kv_cumulative_threshold":0.9,)"
            R"("min_kv_blocks":4,"query_keep_ratio":0.5})");
  EXPECT_EQ(Canonical(B::kNablaAttn, ""), R"({"P":0.9,"dense_first_steps":0,"dense_layers":[]})");
  for (B plain : {B::kFlashAttn, B::kTorchSdpa, B::kReference, B::kSageAttn}) {
    EXPECT_EQ(Canonical(plain, ""), "");
    EXPECT_EQ(Canonical(plain, "{}"), "");
  }
}

struct Pair {
  B backend;
  std::string one, other;
};

// What must not matter: order, spelling of numbers, defaults written out, nulls, repeats.
TEST(CanonicalParameters, TextsOfOneMeaningAreOneText) {
  for (const Pair& pair : std::vector<Pair>{
           {B::kVideoSparseAttn, R"({"sparsity":0.5,"tile":[2,2,2],"dense_first_steps":1})",
            R"({"dense_first_steps":1,"tile":[2,2,2],"sparsity":5e-1})"},
           {B::kVideoSparseAttn, R"({"sparsity":1})", R"({"sparsity":1.0})"},
           {B::kVideoSparseAttn, R"({"sparsity":0})", R"({"sparsity":-0.0})"},
           {B::kVideoSparseAttn, R"({"sparsity":0.8})", ""},
           {B::kVideoSparseAttn, R"({"sparsity":null,"coarse":null})", "{}"},
           {B::kVideoSparseAttn, R"({"grid":[4,8,8]})", ""},
           {B::kVideoSparseAttn, R"({"top_k":4})", R"({"top_k":1000})"},
           {B::kVideoSparseAttn, R"({"dense_layers":[3,1,3]})", R"({"dense_layers":[1,3]})"},
           {B::kSlidingTileAttn, R"({"strategy":{"0_1_0":[1,1,1],"0_0_1":null}})",
            R"({"strategy":{"00_1_0":[1,1,1]}})"},
           {B::kVmobaAttn, R"({"chunk":2})", R"({"chunk":[2.0]})"},
           {B::kVmobaAttn, R"({"chunk":[[2],[3,4]],"topk":5})",
            R"({"chunk":[2,[3.9,4]],"topk":[5,5]})"},
           {B::kNablaAttn, R"({"window":null})", ""}}) {
    EXPECT_EQ(Canonical(pair.backend, pair.one), Canonical(pair.backend, pair.other)) << pair.one;
  }
}

TEST(CanonicalParameters, TextsOfTwoMeaningsAreTwo) {
  for (const Pair& pair :
       std::vector<Pair>{{B::kVideoSparseAttn, R"({"sparsity":0.5})", R"({"sparsity":0.500001})"},
                         {B::kVideoSparseAttn, R"({"tile":[2,4,4]})", R"({"tile":[4,2,4]})"},
                         {B::kVideoSparseAttn, R"({"coarse":true})", ""},
                         {B::kVideoSparseAttn, R"({"dense_first_steps":1})", ""},
                         {B::kSlidingTileAttn, R"({"strategy":{"0_1_0":[1,1,1]}})",
                          R"({"strategy":{"0_1_0":[1,3,1]}})"},
                         {B::kSlidingTileAttn, R"({"strategy":{}})", ""},
                         {B::kVmobaAttn, R"({"chunk":[[2],[3,4]]})", R"({"chunk":[[3,4],[2]]})"},
                         {B::kSlaAttn, R"({"feature_map":"elu"})", ""},
                         {B::kNablaAttn, R"({"window":[1,1,1]})", ""}}) {
    EXPECT_NE(Canonical(pair.backend, pair.one), Canonical(pair.backend, pair.other)) << pair.one;
  }
}

TEST(CanonicalParameters, ReadAsThemselves) {
  for (const Pair& pair :
       std::vector<Pair>{{B::kVideoSparseAttn, R"({"top_k":2})", ""},
                         {B::kVideoSparseAttn, "", ""},
                         {B::kSlidingTileAttn, R"({"strategy":{"0_1_0":[1,1,1]}})", ""},
                         {B::kVmobaAttn, R"({"chunk":0.5})", ""},
                         {B::kSlaAttn, "", ""},
                         {B::kBsaAttn, "", ""},
                         {B::kNablaAttn, R"({"window":[1,3,3]})", ""}}) {
    const std::string canonical = Canonical(pair.backend, pair.one);
    EXPECT_EQ(Canonical(pair.backend, canonical), canonical);
  }
}

// A default that the layer decides is written as it was decided.
TEST(CanonicalParameters, SayWhatTheLayerDecided) {
  AttentionSpec gated = VideoSpec();
  gated.has_gate = true;
  EXPECT_NE(Canonical(B::kVideoSparseAttn, "", gated), Canonical(B::kVideoSparseAttn, ""));
  EXPECT_EQ(Canonical(B::kVideoSparseAttn, "", gated),
            Canonical(B::kVideoSparseAttn, R"({"coarse":true})"));
  AttentionSpec text = VideoSpec();
  text.q_len = text.kv_len = 260;
  EXPECT_THAT(Canonical(B::kSlidingTileAttn, "", text), testing::HasSubstr(R"("text_len":4)"));
}

TEST(CanonicalParameters, WhatDoesNotFitIsNamedByItsKey) {
  for (const Pair& pair :
       std::vector<Pair>{{B::kReference, R"({"x":1})", "attention.parameters.x"},
                         {B::kVideoSparseAttn, R"({"x":1})", "attention.parameters.x"},
                         {B::kVideoSparseAttn, R"({"grid":[1,1,1]})", "attention.parameters.grid"},
                         {B::kSlaAttn, R"({"ratio":2})", "attention.parameters.ratio"}}) {
    try {
      Canonical(pair.backend, pair.one);
      ADD_FAILURE() << pair.one;
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), pair.other);
    }
  }
}

// ---- whose kernel runs

struct Call {
  AttentionInputs inputs;
  std::shared_ptr<const AttentionMetadata> metadata;
};

Call CallOf(B backend, const std::string& json, int64_t step, int layer) {
  at::manual_seed(3);
  const std::vector<int64_t> shape = {1, 256, 2, 16};
  Call call;
  call.inputs.query = at::randn(shape);
  call.inputs.key = at::randn(shape);
  call.inputs.value = at::randn(shape);
  call.inputs.layer_index = layer;
  const auto builder = BackendRegistry::Default().Find(backend)->backend->MakeBuilder();
  call.metadata = builder->Build({step, 10, VideoSpec(), json});
  return call;
}

// Each sparse backend at a dense step, at a dense layer, and past both.
TEST(Runs, NamesFlashWhereABackendGivesItsBitsAndOnlyThere) {
  const BackendRegistry& registry = BackendRegistry::Default();
  const AttentionBackend& flash = *registry.Find(B::kFlashAttn)->backend;
  const std::string json = R"({"dense_first_steps":2,"dense_layers":[1]})";
  for (B id : {B::kVideoSparseAttn, B::kSlidingTileAttn, B::kVmobaAttn, B::kSlaAttn,
               B::kSageSlaAttn, B::kBsaAttn, B::kNablaAttn}) {
    const AttentionBackend& backend = *registry.Find(id)->backend;
    if (backend.Supports(VideoSpec(), QueryCpu())) continue;  // not on this machine
    for (const auto& [step, layer] : {std::pair{0, 0}, {1, 0}, {5, 1}, {5, 0}}) {
      const Call call = CallOf(id, json, step, layer);
      const bool dense = step < 2 || layer == 1;
      EXPECT_EQ(backend.Runs(call.inputs, call.metadata.get()), dense ? B::kFlashAttn : id);
      if (!dense) continue;
      EXPECT_TRUE(backend.Forward(call.inputs, call.metadata.get())
                      .equal(flash.Forward(call.inputs, nullptr)))
          << AttnBackendName(id);
    }
  }
  const AttentionInputs inputs = CallOf(B::kVideoSparseAttn, "", 0, 0).inputs;
  EXPECT_EQ(flash.Runs(inputs, nullptr), B::kFlashAttn);
}

}  // namespace
}  // namespace denoised
