#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/attention_planner.h"
#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

class AttentionPlannerTest : public testing::Test {
 protected:
  AttentionPlannerTest() {
    setting_.registry = &backends_.registry;
    setting_.policy = &policy_;
  }

  AttentionPlanner Make(std::optional<AttnBackend> backend = std::nullopt,
                        const std::string& parameters = "") {
    AttentionOptions options;
    options.backend = backend;
    options.parameters_json = parameters;
    return AttentionPlanner(setting_, options, &observer_);
  }

  static const AttentionSlot& Slot(const AttentionPlan& plan, AttentionRole role) {
    return plan[static_cast<size_t>(role)];
  }

  InventedBackends backends_;
  ManualClock clock_;
  SelectionPolicy policy_{std::nullopt, clock_.function()};
  CountingObserver observer_;
  PlannerSetting setting_;
  const std::vector<AttentionSpec> specs_ = {SelfSpec(), CrossSpec()};
};

TEST_F(AttentionPlannerTest, FillsTheSlotsOfTheAskedRolesOnly) {
  AttentionPlanner planner = Make();
  EXPECT_FALSE(planner.Current(AttentionRole::kSelf));
  EXPECT_THAT(planner.Entries(), IsEmpty());
  const AttentionPlan& plan = planner.Prepare(specs_, 0, 2);
  EXPECT_EQ(Slot(plan, AttentionRole::kSelf).backend, &backends_.sdpa);
  EXPECT_EQ(Slot(plan, AttentionRole::kSelf).id, AttnBackend::kTorchSdpa);
  EXPECT_EQ(Slot(plan, AttentionRole::kCross).backend, &backends_.sdpa);
  EXPECT_EQ(Slot(plan, AttentionRole::kVae).backend, nullptr);
  EXPECT_EQ(planner.Current(AttentionRole::kSelf), AttnBackend::kTorchSdpa);
  EXPECT_FALSE(planner.Current(AttentionRole::kTextEncoder));
}

TEST_F(AttentionPlannerTest, ABuilderMakesMetadataForEveryStep) {
  AttentionPlanner planner = Make(AttnBackend::kSlidingTileAttn, R"({"window": 3})");
  const auto first = Slot(planner.Prepare(specs_, 0, 5), AttentionRole::kSelf).metadata;
  const auto second = Slot(planner.Prepare(specs_, 1, 5), AttentionRole::kSelf).metadata;
  EXPECT_TRUE(first);
  EXPECT_NE(first, second);
  const auto built = backends_.sliding.built();
  ASSERT_THAT(built, SizeIs(2));
  EXPECT_EQ(built[1].step_index, 1);
  EXPECT_EQ(built[1].num_steps, 5);
  EXPECT_EQ(built[1].spec, SelfSpec());
  EXPECT_EQ(built[1].parameters_json, R"({"window": 3})");
}

TEST_F(AttentionPlannerTest, AnotherBackendGetsNeitherTheMetadataNorTheParameters) {
  AttentionPlanner planner = Make(AttnBackend::kSageAttn, R"({"of": "sage"})");
  planner.Prepare(specs_, 0, 3);
  policy_.AddForce(AttnBackend::kSlidingTileAttn, std::nullopt, "", "test");
  planner.Prepare(specs_, 1, 3);
  ASSERT_THAT(backends_.sliding.built(), SizeIs(1));
  EXPECT_EQ(backends_.sliding.built()[0].parameters_json, "");
  EXPECT_EQ(backends_.sage.built().at(0).parameters_json, R"({"of": "sage"})");
  policy_.AddForce(AttnBackend::kReference, std::nullopt, "", "test");
  EXPECT_EQ(Slot(planner.Prepare(specs_, 2, 3), AttentionRole::kSelf).metadata, nullptr);
}

TEST_F(AttentionPlannerTest, TheModelsDefaultComesWithTheModelsParameters) {
  setting_.model_default = AttnBackend::kSlidingTileAttn;
  setting_.model_default_parameters_json = "of the model";
  AttentionPlanner planner = Make();
  planner.Prepare(specs_, 0, 1);
  EXPECT_EQ(backends_.sliding.built().at(0).parameters_json, "of the model");
  EXPECT_EQ(planner.Entries()[0].selection.source, SelectionSource::kModelDefault);
}

TEST_F(AttentionPlannerTest, ParametersWithoutABackendAreRefused) {
  EXPECT_THROW(Make(std::nullopt, "{}"), Error);
}

TEST_F(AttentionPlannerTest, ParametersOfABackendThatTakesNoneAreRefused) {
  AttentionPlanner planner = Make(AttnBackend::kReference, "{}");
  try {
    planner.Prepare(specs_, 0, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "attention.parameters");
  }
  EXPECT_THAT(planner.Entries(), IsEmpty());
}

TEST_F(AttentionPlannerTest, TalliesAreBookedToTheRowThatRan) {
  AttentionPlanner planner = Make();
  const auto forward = [&](int64_t step, uint64_t calls) {
    AttentionTally* tally = Slot(planner.Prepare(specs_, step, 3), AttentionRole::kSelf).tally;
    tally->calls += calls;
    tally->seconds += static_cast<double>(calls);
    return planner.TakeTallies()[static_cast<size_t>(AttentionRole::kSelf)];
  };
  EXPECT_EQ(forward(0, 2).calls, 2u);
  EXPECT_EQ(forward(1, 3).calls, 3u);
  policy_.AddForce(AttnBackend::kReference, std::nullopt, "", "test");
  EXPECT_DOUBLE_EQ(forward(2, 4).seconds, 4);
  const auto entries = planner.Entries();
  ASSERT_THAT(entries, SizeIs(4));
  EXPECT_EQ(entries[0].calls, 5u);
  EXPECT_EQ(entries[1].calls, 4u);
  EXPECT_EQ(entries[1].selection.backend, AttnBackend::kReference);
  EXPECT_EQ(planner.TakeTallies()[0].calls, 0u) << "taken once";
}

TEST_F(AttentionPlannerTest, WhatABackendLacksIsNotedOnce) {
  setting_.registry = &BackendRegistry::Default();
  AttentionSpec spec = SelfSpec();
  spec.supported = {AttnBackend::kVideoSparseAttn, AttnBackend::kSlaAttn};
  spec.grid = {1, 2, 2};
  spec.q_len = spec.kv_len = 4;
  AttentionPlanner planner = Make(AttnBackend::kVideoSparseAttn);
  planner.Prepare({spec}, 0, 2);
  planner.Prepare({spec}, 1, 2);
  EXPECT_THAT(planner.Notes(), ElementsAre(testing::HasSubstr("no to_gate_compress")));

  spec.has_gate = spec.has_projection = true;
  AttentionPlanner gated = Make(AttnBackend::kVideoSparseAttn), sla = Make(AttnBackend::kSlaAttn);
  gated.Prepare({spec}, 0, 1);
  sla.Prepare({spec}, 0, 1);
  EXPECT_THAT(gated.Notes(), IsEmpty());
  EXPECT_THAT(sla.Notes(), IsEmpty());
}

TEST_F(AttentionPlannerTest, WithoutAChangeNothingIsSelectedAnew) {
  AttentionPlanner planner = Make();
  planner.Prepare(specs_, 0, 3);
  backends_.sdpa_refuses = true;  // would be noticed by a new selection
  EXPECT_EQ(Slot(planner.Prepare(specs_, 1, 3), AttentionRole::kSelf).id, AttnBackend::kTorchSdpa);
  auto longer = specs_;
  longer[0].q_len = 77;
  const AttentionPlan& plan = planner.Prepare(longer, 2, 3);
  EXPECT_EQ(Slot(plan, AttentionRole::kSelf).id, AttnBackend::kReference) << "its spec changed";
  EXPECT_EQ(Slot(plan, AttentionRole::kCross).id, AttnBackend::kTorchSdpa) << "its did not";
}

TEST_F(AttentionPlannerTest, RowsCoverEveryStepWithoutGapsOrOverlaps) {
  AttentionPlanner planner = Make();
  std::vector<AttnBackend> ran;
  std::string force;
  for (int64_t step = 0; step < 40; ++step) {
    if (step % 7 == 3)
      force = policy_
                  .AddForce(step % 2 ? AttnBackend::kReference : AttnBackend::kSageAttn,
                            std::nullopt, "", "test")
                  .id;
    if (step % 7 == 5) policy_.Release(force);
    ran.push_back(Slot(planner.Prepare(specs_, step, 40), AttentionRole::kSelf).id);
  }
  int64_t next = 0;
  for (const ReceiptEntry& row : planner.Entries()) {
    if (row.role != AttentionRole::kSelf) continue;
    EXPECT_EQ(row.first_step, next);
    for (int64_t step = row.first_step; step <= row.last_step; ++step) {
      EXPECT_EQ(row.selection.backend, ran[static_cast<size_t>(step)]) << "step " << step;
    }
    next = row.last_step + 1;
  }
  EXPECT_EQ(next, 40);
}

TEST_F(AttentionPlannerTest, AStepWhoseMetadataCannotBeMadeIsNotOnTheReceipt) {
  setting_.model_default = AttnBackend::kSlidingTileAttn;
  setting_.model_default_parameters_json = "bad";
  AttentionPlanner planner = Make(AttnBackend::kSageAttn);
  planner.Prepare(specs_, 0, 2);
  backends_.registry =
      BackendRegistry({{AttnBackend::kTorchSdpa, &backends_.sdpa, "", true},
                       {AttnBackend::kSlidingTileAttn, &backends_.sliding, "", false}});
  policy_.Clear();
  EXPECT_THROW(planner.Prepare(specs_, 1, 2), Error);
  for (const ReceiptEntry& row : planner.Entries()) EXPECT_EQ(row.last_step, 0);
}

TEST_F(AttentionPlannerTest, AFallbackIsReportedOnceForEachChangeOfItsReasons) {
  AttentionPlanner planner = Make(AttnBackend::kFlashAttn);
  for (int64_t step = 0; step < 3; ++step) planner.Prepare({SelfSpec()}, step, 3);
  EXPECT_THAT(observer_.fallbacks,
              ElementsAre(std::tuple(AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa,
                                     SelectionSource::kRequest)));
}

}  // namespace
}  // namespace denoised
