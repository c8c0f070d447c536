#include "runtime/attention/attention_layer.h"

#include <gtest/gtest.h>

#include "backends/error.h"
#include "backends/registry.h"
#include "tests/backends/fake_backends.h"

namespace denoised {
namespace {

// Keeps what the layer handed over.
class RecordingBackend : public FakeBackend {
 public:
  RecordingBackend() : FakeBackend(AttnBackend::kReference) {}
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override {
    seen = inputs;
    seen_metadata = metadata;
    return inputs.query.clone();
  }
  mutable AttentionInputs seen;
  mutable const AttentionMetadata* seen_metadata = nullptr;
};

ForwardContext With(const AttentionPlan& plan) {
  ForwardContext context;
  context.attn_metadata = &plan;
  return context;
}

TEST(AttentionLayer, OutsideOfAForwardContextItFails) {
  const AttentionLayer layer(AttentionRole::kSelf, 0);
  const at::Tensor x = at::ones({1, 2, 1, 4});
  EXPECT_THROW(layer.Forward(x, x, x), Error);
}

TEST(AttentionLayer, ARoleWithoutABackendIsNamed) {
  const AttentionPlan plan;
  const ScopedForwardContext scope(With(plan));
  const AttentionLayer layer(AttentionRole::kCross, 0);
  const at::Tensor x = at::ones({1, 2, 1, 4});
  try {
    layer.Forward(x, x, x);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("cross"), std::string::npos);
  }
}

TEST(AttentionLayer, HandsItsRolesBackendEverythingAndTallies) {
  const RecordingBackend self, cross;
  const auto metadata = std::make_shared<const AttentionMetadata>();
  AttentionTally tally;
  AttentionPlan plan;
  plan[static_cast<size_t>(AttentionRole::kSelf)] =
      AttentionSlot{&self, AttnBackend::kReference, metadata, &tally};
  plan[static_cast<size_t>(AttentionRole::kCross)] =
      AttentionSlot{&cross, AttnBackend::kReference, nullptr, nullptr};
  const ScopedForwardContext scope(With(plan));
  const at::Tensor q = at::rand({1, 5, 2, 16}), k = at::rand({1, 3, 2, 16});
  const at::Tensor gate = at::rand({1, 5, 2, 16}), mask = at::ones({1, 3}, at::kBool);
  const AttentionLayer layer(AttentionRole::kSelf, 11, 0, true);
  const AttentionExtras extras = {gate, mask, at::rand({16, 16}), at::rand({16})};
  EXPECT_TRUE(layer.Forward(q, k, k, extras).equal(q));
  EXPECT_TRUE(self.seen.projection.is_same(extras.projection));
  EXPECT_TRUE(self.seen.projection_bias.is_same(extras.projection_bias));
  EXPECT_EQ(self.seen.layer_index, 11);
  EXPECT_TRUE(self.seen.causal);
  EXPECT_EQ(self.seen.scale, 0.25);
  EXPECT_TRUE(self.seen.gate.is_same(gate));
  EXPECT_TRUE(self.seen.mask.is_same(mask));
  EXPECT_EQ(self.seen_metadata, metadata.get());
  EXPECT_EQ(tally.Of(AttnBackend::kReference).calls, 1u);
  EXPECT_GE(tally.Of(AttnBackend::kReference).seconds, 0.0);
  EXPECT_FALSE(cross.seen.query.defined());
}

TEST(AttentionLayer, ATallyKeepsCountingAndAScaleIsKept) {
  const RecordingBackend backend;
  AttentionTally tally;
  AttentionPlan plan;
  plan[0] = AttentionSlot{&backend, AttnBackend::kReference, nullptr, &tally};
  const ScopedForwardContext scope(With(plan));
  const at::Tensor x = at::ones({1, 2, 1, 4});
  const AttentionLayer layer(AttentionRole::kSelf, 0, 0.125);
  for (int i = 0; i < 3; ++i) layer.Forward(x, x, x);
  EXPECT_EQ(tally.Of(AttnBackend::kReference).calls, 3u);
  EXPECT_EQ(backend.seen.scale, 0.125);
}

TEST(AttentionLayer, ABackendThatThrowsLeavesTheTallyAsItWas) {
  AttentionTally tally;
  AttentionPlan plan;
  const BackendRegistry& registry = BackendRegistry::Default();
  plan[0] = AttentionSlot{registry.Find(AttnBackend::kNoAttention)->backend,
                          AttnBackend::kNoAttention, nullptr, &tally};
  const ScopedForwardContext scope(With(plan));
  const at::Tensor x = at::ones({1, 2, 1, 4});
  EXPECT_THROW(AttentionLayer(AttentionRole::kSelf, 0).Forward(x, x, x), Error);
  EXPECT_EQ(tally.Of(AttnBackend::kNoAttention).calls, 0u);
}

// Hands the calls of layer 0 over.
class HandingBackend : public FakeBackend {
 public:
  HandingBackend() : FakeBackend(AttnBackend::kVideoSparseAttn) {}
  AttnBackend Runs(const AttentionInputs& inputs, const AttentionMetadata*) const override {
    return inputs.layer_index == 0 ? AttnBackend::kFlashAttn : id();
  }
};

TEST(AttentionLayer, ACallIsTalliedToTheBackendThatItWasHandedOverTo) {
  const HandingBackend backend;
  AttentionTally tally;
  AttentionPlan plan;
  plan[0] = AttentionSlot{&backend, AttnBackend::kVideoSparseAttn, nullptr, &tally};
  EXPECT_EQ(plan[0].MostCalled(), AttnBackend::kVideoSparseAttn) << "nothing ran yet";
  const ScopedForwardContext scope(With(plan));
  const at::Tensor x = at::ones({1, 2, 1, 4});
  for (int layer = 0; layer < 3; ++layer)
    AttentionLayer(AttentionRole::kSelf, layer).Forward(x, x, x);
  EXPECT_EQ(tally.Of(AttnBackend::kFlashAttn).calls, 1u);
  EXPECT_EQ(tally.Of(AttnBackend::kVideoSparseAttn).calls, 2u);
  EXPECT_EQ(plan[0].MostCalled(), AttnBackend::kVideoSparseAttn);
  plan[0].slots[0].tally->Of(AttnBackend::kFlashAttn).calls = 5;
  EXPECT_EQ(plan[0].MostCalled(), AttnBackend::kFlashAttn);
}

}  // namespace
}  // namespace denoised
