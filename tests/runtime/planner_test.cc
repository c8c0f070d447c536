#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/attention/attention_planner.h"
#include "tests/runtime/fake_engine.h"
#include "tests/runtime/leases.h"

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
    return AttentionPlanner(setting_, {options}, &observer_);
  }

  // A step whose layers call their backends `calls` times a role, at a second each.
  static void Run(AttentionPlanner& planner, const std::vector<AttentionSpec>& specs, int64_t step,
                  int64_t num_steps, uint64_t calls = 1) {
    for (const RolePlan& role : planner.Prepare(specs, step, num_steps)) {
      for (const AttentionSlot& slot : role.slots) {
        slot.tally->Of(slot.id).calls += calls;
        slot.tally->Of(slot.id).seconds += static_cast<double>(calls);
      }
    }
    planner.BookForward();
  }
  static void RunToEnd(AttentionPlanner& planner, const std::vector<AttentionSpec>& specs,
                       int64_t step, int64_t num_steps, uint64_t calls = 1) {
    Run(planner, specs, step, num_steps, calls);
    planner.Complete();
  }
  static std::vector<ReceiptEntry> SelfRows(const AttentionPlanner& planner) {
    std::vector<ReceiptEntry> rows = planner.Entries();
    std::erase_if(rows, [](const auto& row) { return row.role != AttentionRole::kSelf; });
    return rows;
  }

  static const AttentionSlot& Slot(const AttentionPlan& plan, AttentionRole role) {
    return plan[static_cast<size_t>(role)].slots.at(0);
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
  EXPECT_THAT(plan[static_cast<size_t>(AttentionRole::kVae)].slots, IsEmpty());
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

// Real backends: STA tells dense first steps from the others, and with a strategy every step.
TEST_F(AttentionPlannerTest, EqualSettingsHaveOneMetadataAcrossJobsAndStepsThatAreAlike) {
  setting_.registry = &BackendRegistry::Default();
  AttentionSpec spec = SelfSpec();
  spec.grid = {2, 4, 4};
  spec.q_len = spec.kv_len = 32;
  const auto metadata = [&](AttentionPlanner& planner, int64_t step) {
    return Slot(planner.Prepare({spec}, step, 9), AttentionRole::kSelf).metadata;
  };
  const std::string dense_first = R"({"tile":[1,4,4],"dense_first_steps":2})";
  AttentionPlanner one = Make(AttnBackend::kSlidingTileAttn, dense_first);
  AttentionPlanner other =
      Make(AttnBackend::kSlidingTileAttn, R"({"dense_first_steps":2, "tile":[1,4,4]})");
  const auto dense = metadata(one, 0);
  EXPECT_EQ(metadata(other, 1), dense) << "another spelling, another step";
  const auto sparse = metadata(one, 2);
  EXPECT_NE(sparse, dense);
  EXPECT_EQ(metadata(other, 7), sparse);
  AttentionPlanner third = Make(AttnBackend::kSlidingTileAttn, R"({"tile":[1,4,4]})");
  EXPECT_NE(metadata(third, 3), sparse) << "other parameters";
  AttentionPlanner by_step =
      Make(AttnBackend::kSlidingTileAttn, R"({"tile":[1,4,4],"strategy":{"1_0_0":[1,1,1]}})");
  const auto first = metadata(by_step, 0);
  EXPECT_NE(metadata(by_step, 1), first);
  spec.grid = {2, 2, 8};
  EXPECT_NE(metadata(one, 5), sparse) << "another grid";
}

TEST_F(AttentionPlannerTest, WhatLayersTalliedInAStepThatWasLeftIsForgotten) {
  AttentionPlanner planner = Make();
  Slot(planner.Prepare({SelfSpec()}, 0, 2), AttentionRole::kSelf)
      .tally->Of(AttnBackend::kTorchSdpa)
      .calls += 5;
  RunToEnd(planner, {SelfSpec()}, 0, 2, 3);
  EXPECT_EQ(planner.Entries().at(0).calls, 3u);
}

TEST_F(AttentionPlannerTest, AnotherBackendGetsNeitherTheMetadataNorTheParameters) {
  AttentionPlanner planner = Make(AttnBackend::kSageAttn, R"({"of": "sage"})");
  planner.Prepare(specs_, 0, 3);
  AddForce(policy_, AttnBackend::kSlidingTileAttn, std::nullopt, "", "test");
  planner.Prepare(specs_, 1, 3);
  ASSERT_THAT(backends_.sliding.built(), SizeIs(1));
  EXPECT_EQ(backends_.sliding.built()[0].parameters_json, "{}");
  EXPECT_EQ(backends_.sage.built().at(0).parameters_json, R"({"of": "sage"})");
  AddForce(policy_, AttnBackend::kReference, std::nullopt, "", "test");
  EXPECT_EQ(Slot(planner.Prepare(specs_, 2, 3), AttentionRole::kSelf).metadata, nullptr);
}

TEST_F(AttentionPlannerTest, TheModelsDefaultComesWithTheModelsParameters) {
  setting_.model_default = AttnBackend::kSlidingTileAttn;
  setting_.model_default_parameters_json = "of the model";
  AttentionPlanner planner = Make();
  RunToEnd(planner, specs_, 0, 1);
  EXPECT_EQ(backends_.sliding.built().at(0).parameters_json, "of the model");
  EXPECT_EQ(planner.Entries()[0].selection.granted.source, SelectionSource::kModelDefault);
  EXPECT_EQ(planner.Entries()[0].parameters, "of the model");
}

TEST_F(AttentionPlannerTest, NamingTheModelsDefaultKeepsItsParametersAndGivingSomeReplacesThem) {
  setting_.model_default = AttnBackend::kSlidingTileAttn;
  setting_.model_default_parameters_json = "of the model";
  for (const std::string given : {"", "{}", "of the request"}) {
    AttentionPlanner planner = Make(AttnBackend::kSlidingTileAttn, given);
    RunToEnd(planner, specs_, 0, 1);
    EXPECT_EQ(SelfRows(planner).at(0).parameters, given.empty() ? "of the model" : given);
    EXPECT_EQ(SelfRows(planner).at(0).selection.granted.source, SelectionSource::kRequest);
  }
}

TEST_F(AttentionPlannerTest, AForceBringsItsOwnParametersOrLeavesTheRequests) {
  AttentionPlanner planner = Make(AttnBackend::kSageAttn, "of the request");
  RunToEnd(planner, specs_, 0, 3);
  const Lease plain = AddForce(policy_, AttnBackend::kSageAttn, std::nullopt, "", "test");
  RunToEnd(planner, specs_, 1, 3);
  AddForce(policy_, AttnBackend::kSageAttn, std::nullopt, "", "test", "of the force");
  RunToEnd(planner, specs_, 2, 3);
  const auto rows = SelfRows(planner);
  ASSERT_THAT(rows, SizeIs(3));
  EXPECT_EQ(rows[1].parameters, "of the request");
  EXPECT_EQ(rows[1].selection.granted.lease_id, plain.id);
  EXPECT_EQ(rows[2].parameters, "of the force");
  EXPECT_EQ(backends_.sage.built().at(2).parameters_json, "of the force");
}

TEST_F(AttentionPlannerTest, AForceThatALayerRefusesFallsToTheOlderForce) {
  AddForce(policy_, AttnBackend::kReference, std::nullopt, "", "test");
  AddForce(policy_, AttnBackend::kSageAttn, std::nullopt, "", "test");
  AttentionPlanner planner = Make();
  RunToEnd(planner, specs_, 0, 1);
  EXPECT_EQ(planner.Entries()[0].ran, AttnBackend::kSageAttn);
  EXPECT_EQ(planner.Entries()[1].role, AttentionRole::kCross);
  EXPECT_EQ(planner.Entries()[1].ran, AttnBackend::kReference);
}

TEST_F(AttentionPlannerTest, ParametersWithoutABackendAreRefused) {
  EXPECT_THROW(Make(std::nullopt, R"({"x": 1})").Prepare(specs_, 0, 1), Error);
  EXPECT_NO_THROW(Make(std::nullopt, "{}").Prepare(specs_, 0, 1));
}

TEST_F(AttentionPlannerTest, ParametersOfABackendThatTakesNoneAreRefused) {
  AttentionPlanner planner = Make(AttnBackend::kReference, R"({"x": 1})");
  try {
    planner.Prepare(specs_, 0, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "attention.parameters.x");
  }
  EXPECT_THAT(planner.Entries(), IsEmpty());
}

TEST_F(AttentionPlannerTest, TalliesAreBookedToTheRowThatRan) {
  AttentionPlanner planner = Make();
  RunToEnd(planner, specs_, 0, 3, 2);
  RunToEnd(planner, specs_, 1, 3, 3);
  AddForce(policy_, AttnBackend::kReference, std::nullopt, "", "test");
  RunToEnd(planner, specs_, 2, 3, 4);
  const auto entries = planner.Entries();
  ASSERT_THAT(entries, SizeIs(4));
  EXPECT_EQ(entries[0].calls, 5u);
  EXPECT_EQ(entries[1].calls, 4u);
  EXPECT_DOUBLE_EQ(entries[1].seconds.value(), 4);
  EXPECT_EQ(entries[1].ran, AttnBackend::kReference);
  planner.BookForward();
  planner.Complete();
  EXPECT_EQ(planner.Entries()[1].calls, 4u) << "booked once";
}

TEST_F(AttentionPlannerTest, OnADeviceWhoseTimeIsNotKnownThereAreNoSeconds) {
  setting_.device.type = DeviceInfo::Type::kCuda;
  AttentionPlanner planner = Make();
  RunToEnd(planner, specs_, 0, 1);
  EXPECT_FALSE(planner.Entries().at(0).seconds);
  EXPECT_EQ(planner.Entries().at(0).calls, 1u);
}

TEST_F(AttentionPlannerTest, AStepThatFailedIsNotOnTheReceipt) {
  AttentionPlanner planner = Make();
  RunToEnd(planner, specs_, 0, 3, 2);
  Run(planner, specs_, 1, 3, 5);  // and then something throws
  const auto rows = SelfRows(planner);
  ASSERT_THAT(rows, SizeIs(1));
  EXPECT_EQ(rows[0].last_step, 0);
  EXPECT_EQ(rows[0].calls, 2u);
}

TEST_F(AttentionPlannerTest, RefusalsBelongToTheStepsInWhichTheyHappened) {
  AttentionPlanner planner = Make(AttnBackend::kSageAttn);
  RunToEnd(planner, specs_, 0, 4);
  const Lease force = AddForce(policy_, AttnBackend::kFlashAttn, std::nullopt, "", "test");
  RunToEnd(planner, specs_, 1, 4);
  RunToEnd(planner, specs_, 2, 4);
  policy_.Release(force.id);
  RunToEnd(planner, specs_, 3, 4);
  const auto rows = SelfRows(planner);
  ASSERT_THAT(rows, SizeIs(3));
  EXPECT_THAT(rows[0].selection.refusals, IsEmpty());
  ASSERT_THAT(rows[1].selection.refusals, SizeIs(1));
  EXPECT_EQ(rows[1].selection.refusals[0].source, SelectionSource::kForce);
  EXPECT_EQ(std::pair(rows[1].first_step, rows[1].last_step), std::pair(int64_t{1}, int64_t{2}));
  EXPECT_THAT(rows[2].selection.refusals, IsEmpty());
  for (const ReceiptEntry& row : rows) EXPECT_EQ(row.ran, AttnBackend::kSageAttn);
}

TEST_F(AttentionPlannerTest, RowsSplitByWhatRanAndNotByWhatWasChosen) {
  AttentionPlanner planner = Make(AttnBackend::kSageAttn);
  // Both layers are handed over at steps 0 and 1, the first one for ever.
  for (int64_t step = 0; step < 4; ++step) {
    AttentionTally* tally =
        Slot(planner.Prepare({SelfSpec()}, step, 4), AttentionRole::kSelf).tally;
    tally->Of(AttnBackend::kFlashAttn).calls += step < 2 ? 2 : 1;
    tally->Of(AttnBackend::kSageAttn).calls += step < 2 ? 0 : 1;
    planner.BookForward();
    planner.Complete();
  }
  const auto rows = planner.Entries();
  ASSERT_THAT(rows, SizeIs(2));
  EXPECT_EQ(rows[0].ran, AttnBackend::kFlashAttn);
  EXPECT_EQ(rows[0].parameters, "");
  EXPECT_EQ(rows[0].calls, 6u);
  EXPECT_EQ(std::pair(rows[0].first_step, rows[0].last_step), std::pair(int64_t{0}, int64_t{3}));
  EXPECT_THAT(Reason(rows[0]), testing::HasSubstr("to which SAGE_ATTN hands over"));
  EXPECT_EQ(rows[1].ran, AttnBackend::kSageAttn);
  EXPECT_EQ(rows[1].calls, 2u);
  EXPECT_EQ(std::pair(rows[1].first_step, rows[1].last_step), std::pair(int64_t{2}, int64_t{3}));
}

TEST_F(AttentionPlannerTest, WhatABackendLacksIsNotedOnce) {
  setting_.registry = &BackendRegistry::Default();
  AttentionSpec spec = SelfSpec();
  spec.supported = {AttnBackend::kVideoSparseAttn, AttnBackend::kSlaAttn};
  spec.grid = {1, 2, 2};
  spec.q_len = spec.kv_len = 4;
  AttentionPlanner planner = Make(AttnBackend::kVideoSparseAttn);
  Run(planner, {spec}, 0, 2);
  EXPECT_THAT(planner.Notes(), IsEmpty()) << "of a step that is not done";
  RunToEnd(planner, {spec}, 0, 2);
  RunToEnd(planner, {spec}, 1, 2);
  EXPECT_THAT(planner.Notes(), ElementsAre(testing::HasSubstr("no to_gate_compress")));

  spec.has_gate = spec.has_projection = true;
  AttentionPlanner gated = Make(AttnBackend::kVideoSparseAttn), sla = Make(AttnBackend::kSlaAttn);
  RunToEnd(gated, {spec}, 0, 1);
  RunToEnd(sla, {spec}, 0, 1);
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
      force = AddForce(policy_, step % 2 ? AttnBackend::kReference : AttnBackend::kSageAttn).id;
    if (step % 7 == 5) policy_.Release(force);
    RunToEnd(planner, specs_, step, 40);
    ran.push_back(*planner.Current(AttentionRole::kSelf));
  }
  int64_t next = 0;
  for (const ReceiptEntry& row : planner.Entries()) {
    if (row.role != AttentionRole::kSelf) continue;
    EXPECT_EQ(row.first_step, next);
    for (int64_t step = row.first_step; step <= row.last_step; ++step) {
      EXPECT_EQ(row.ran, ran[static_cast<size_t>(step)]) << "step " << step;
    }
    next = row.last_step + 1;
  }
  EXPECT_EQ(next, 40);
}

TEST_F(AttentionPlannerTest, AWishWhoseParametersAreRefusedFallsToTheNextAndSaysSo) {
  setting_.model_default = AttnBackend::kSlidingTileAttn;
  setting_.model_default_parameters_json = "bad";
  AttentionPlanner planner = Make();
  RunToEnd(planner, specs_, 0, 1);
  const ReceiptEntry row = SelfRows(planner).at(0);
  EXPECT_EQ(row.ran, AttnBackend::kTorchSdpa);
  EXPECT_EQ(row.selection.refusals.at(0).source, SelectionSource::kModelDefault);
  EXPECT_THAT(row.selection.refusals.at(0).reason, testing::HasSubstr("are bad"));
}

TEST_F(AttentionPlannerTest, AFallbackIsReportedOnceForEachChangeOfItsReasons) {
  AttentionPlanner planner = Make(AttnBackend::kFlashAttn);
  for (int64_t step = 0; step < 3; ++step) RunToEnd(planner, specs_, step, 3);
  EXPECT_THAT(observer_.fallbacks,
              ElementsAre(std::tuple(AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa,
                                     SelectionSource::kRequest)))
      << "and not for cross-attention, which never lists it";
}

// ---- leases and rules with a place -------------------------------------------------------------

class PlacedAttentionTest : public AttentionPlannerTest {
 protected:
  PlacedAttentionTest() { setting_.layers = {6, 6, 1, 1}; }

  Lease Force(AttnBackend backend, PlaceScope where) {
    LeaseRequest request{backend};
    request.scope.where = where;
    return policy_.Force(request);
  }
  // "layers step-step backend" of self-attention's rows.
  static std::vector<std::string> Rows(const AttentionPlanner& planner) {
    std::vector<std::string> rows;
    for (const ReceiptEntry& row : SelfRows(planner)) {
      rows.push_back((row.layers ? ToText(*row.layers) : "all") + " " +
                     std::to_string(row.first_step) + "-" + std::to_string(row.last_step) + " " +
                     std::string(AttnBackendName(row.ran)));
    }
    return rows;
  }
  void RunLoop(AttentionPlanner& planner, int64_t first, int64_t num_steps) {
    for (int64_t step = first; step < num_steps; ++step) {
      const double sigma = 1 - static_cast<double>(step) / static_cast<double>(num_steps);
      for (const RolePlan& role : planner.Prepare(specs_, step, num_steps, sigma)) {
        for (const AttentionSlot& slot : role.slots) slot.tally->Of(slot.id).calls += 1;
      }
      planner.BookForward();
      planner.Complete();
    }
  }
};

TEST_F(PlacedAttentionTest, ALeaseOfSomeLayersIsForTheseAloneAndTheReceiptSaysSo) {
  Force(AttnBackend::kReference, {.role = AttentionRole::kSelf, .layers = Interval{1, 2}});
  AttentionPlanner planner = Make();
  const RolePlan self = planner.Prepare(specs_, 0, 1, 1.0)[0];
  ASSERT_THAT(self.slots, SizeIs(3));
  for (int64_t layer = 0; layer < 6; ++layer) {
    const bool forced = layer == 1 || layer == 2;
    EXPECT_EQ(self.Of(layer)->id, forced ? AttnBackend::kReference : AttnBackend::kTorchSdpa)
        << layer;
  }
  EXPECT_THAT(planner.Prepare(specs_, 0, 1, 1.0)[1].slots, SizeIs(1)) << "the other role";
  RunLoop(planner, 0, 2);
  EXPECT_THAT(Rows(planner),
              ElementsAre("0 0-1 TORCH_SDPA", "1-2 0-1 REFERENCE", "3-5 0-1 TORCH_SDPA"));
}

TEST_F(PlacedAttentionTest, ALeaseOfSomeStepsHoldsForTheseAlone) {
  Force(AttnBackend::kReference, {.steps = Interval{2, 3}});
  AttentionPlanner planner = Make();
  RunLoop(planner, 0, 6);
  EXPECT_THAT(Rows(planner),
              ElementsAre("all 0-1 TORCH_SDPA", "all 2-3 REFERENCE", "all 4-5 TORCH_SDPA"));
  EXPECT_THAT(observer_.switches, SizeIs(2));
}

TEST_F(PlacedAttentionTest, ALeaseOfSomeNoiseLevelsHoldsForTheseAlone) {
  Force(AttnBackend::kReference, {.sigma = SigmaRange{0.5, 1}});
  AttentionPlanner planner = Make();
  RunLoop(planner, 0, 4);  // 1, 0.75, 0.5, 0.25
  EXPECT_THAT(Rows(planner), ElementsAre("all 0-2 REFERENCE", "all 3-3 TORCH_SDPA"));
}

TEST_F(PlacedAttentionTest, TheNarrowerLeaseDecidesWhicheverIsNewer) {
  Force(AttnBackend::kReference, {.layers = Interval{0, 0}});
  Force(AttnBackend::kSageAttn, {});
  AttentionPlanner planner = Make();
  RunLoop(planner, 0, 1);
  EXPECT_THAT(Rows(planner), ElementsAre("0 0-0 REFERENCE", "1-5 0-0 SAGE_ATTN"));
}

TEST_F(PlacedAttentionTest, OfAScheduleTheFirstRuleThatHoldsCountsAndAForceGoesBeforeIt) {
  AttentionOptions options;
  options.backend = AttnBackend::kTorchSdpa;
  options.schedule = {{{.steps = Interval{0, 1}}, AttnBackend::kReference},
                      {{.steps = Interval{0, 2}}, AttnBackend::kSageAttn}};
  AttentionPlanner planner(setting_, {options}, &observer_);
  RunLoop(planner, 0, 3);
  Force(AttnBackend::kSlidingTileAttn, {});
  RunLoop(planner, 3, 4);
  EXPECT_THAT(Rows(planner),
              ElementsAre("all 0-1 REFERENCE", "all 2-2 SAGE_ATTN", "all 3-3 SLIDING_TILE_ATTN"));
  const auto rows = SelfRows(planner);
  EXPECT_EQ(rows[0].selection.granted.rule, 0);
  EXPECT_EQ(rows[1].selection.granted.rule, 1);
  EXPECT_EQ(rows[0].asked, AttnBackend::kReference);
  EXPECT_EQ(rows[2].asked, AttnBackend::kTorchSdpa) << "no rule holds there";
  EXPECT_EQ(rows[0].selection.Reason(), "REFERENCE by request rule 0");
}

TEST_F(PlacedAttentionTest, AModelsRulesGoBeforeItsDefaultAndAfterTheRequest) {
  setting_.model_default = AttnBackend::kSageAttn;
  setting_.model_rules = {{{.layers = Interval{0, 1}}, AttnBackend::kReference}};
  AttentionPlanner planner = Make();
  RunLoop(planner, 0, 1);
  EXPECT_THAT(Rows(planner), ElementsAre("0-1 0-0 REFERENCE", "2-5 0-0 SAGE_ATTN"));
  AttentionPlanner asked = Make(AttnBackend::kSlidingTileAttn);
  RunLoop(asked, 0, 1);
  EXPECT_THAT(Rows(asked), ElementsAre("all 0-0 SLIDING_TILE_ATTN"));
}

TEST_F(PlacedAttentionTest, LeasesOfATenantAJobOrAModelAreForTheseAlone) {
  setting_.model = "m";
  LeaseRequest request{AttnBackend::kReference};
  request.scope.tenant = "acme";
  request.scope.model = "m";
  policy_.Force(request);
  PlannerSubject subject;
  subject.tenant = "acme";
  AttentionPlanner theirs(setting_, subject, &observer_);
  AttentionPlanner nobodys = Make();
  PlannerSetting other = setting_;
  other.model = "n";
  AttentionPlanner elsewhere(other, subject, &observer_);
  for (AttentionPlanner* planner : {&theirs, &nobodys, &elsewhere}) RunLoop(*planner, 0, 1);
  EXPECT_EQ(theirs.Current(AttentionRole::kSelf), AttnBackend::kReference);
  EXPECT_EQ(nobodys.Current(AttentionRole::kSelf), AttnBackend::kTorchSdpa);
  EXPECT_EQ(elsewhere.Current(AttentionRole::kSelf), AttnBackend::kTorchSdpa);
}

TEST_F(PlacedAttentionTest, APinnedSubjectKeepsTheLeasesOfItsBeginning) {
  const Lease first = Force(AttnBackend::kReference, {.steps = Interval{1, 9}});
  PlannerSubject subject;
  subject.pin = true;
  AttentionPlanner planner(setting_, subject, &observer_);
  RunLoop(planner, 0, 1);
  policy_.Release(first.id);
  Force(AttnBackend::kSlidingTileAttn, {});
  RunLoop(planner, 1, 3);
  EXPECT_THAT(Rows(planner), ElementsAre("all 0-0 TORCH_SDPA", "all 1-2 REFERENCE"));
  AttentionPlanner again(setting_, subject, &observer_);
  again.Pin(planner.pinned());
  RunLoop(again, 3, 4);
  EXPECT_THAT(Rows(again), ElementsAre("all 3-3 REFERENCE"));
}

// A lease whose backend cannot serve falls to the next one there, and a strict one fails.
TEST_F(PlacedAttentionTest, AStrictLeaseThatCannotServeFailsTheWorkAtItsPlace) {
  LeaseRequest request{AttnBackend::kNoAttention};
  request.scope.where.steps = Interval{1, 1};
  request.mode = SelectionMode::kStrict;
  policy_.Force(request);
  AttentionPlanner planner = Make();
  EXPECT_NO_THROW(planner.Prepare(specs_, 0, 3, 1.0));
  try {
    planner.Prepare(specs_, 1, 3, 0.5);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(error.reason(), "BACKEND_REFUSED");
  }
  EXPECT_NO_THROW(planner.Prepare(specs_, 2, 3, 0.4));
}

// What is in the counters is in the receipts: also where a step was left on its way.
TEST_F(PlacedAttentionTest, CountersHearOfCompletedStepsOnly) {
  AttentionPlanner planner = Make();
  Run(planner, specs_, 0, 2, 5);  // and is not completed
  EXPECT_EQ(observer_.attention_calls, 0u);
  RunLoop(planner, 0, 2);
  uint64_t calls = 0;
  for (const ReceiptEntry& row : planner.Entries()) calls += row.calls;
  EXPECT_EQ(observer_.attention_calls, calls);
}

TEST_F(PlacedAttentionTest, EverythingThatAScheduleMayChooseIsKnownBefore) {
  PlannerSubject subject;
  subject.num_steps = 4;
  subject.attention.schedule = {{{.steps = Interval{2, 3}}, AttnBackend::kReference},
                                {{.layers = Interval{5, 5}}, AttnBackend::kSageAttn}};
  std::vector<AttnBackend> all;
  for (const Wish& wish : ChoicesNow(setting_, subject, SelfSpec())) all.push_back(wish.backend);
  EXPECT_THAT(
      all, ElementsAre(AttnBackend::kReference, AttnBackend::kSageAttn, AttnBackend::kTorchSdpa));
  Force(AttnBackend::kSlidingTileAttn, {});
  all.clear();
  for (const Wish& wish : ChoicesNow(setting_, subject, SelfSpec())) all.push_back(wish.backend);
  EXPECT_THAT(all, ElementsAre(AttnBackend::kSlidingTileAttn)) << "it hides the rest";
}

TEST_F(PlacedAttentionTest, ARuleThatCanHoldForNothingIsRefusedByItsIndex) {
  const auto field = [&](AttentionRule rule) -> std::string {
    PlannerSubject subject;
    subject.num_steps = 4;
    subject.attention.schedule = {{{}, AttnBackend::kReference}, std::move(rule)};
    try {
      CheckSchedule(setting_, subject, specs_);
      return "";
    } catch (const Error& error) {
      return error.field();
    }
  };
  EXPECT_EQ(field({{}, AttnBackend::kReference}), "");
  EXPECT_EQ(field({{.steps = Interval{3, 99}}, AttnBackend::kReference}), "");
  EXPECT_EQ(field({{.steps = Interval{4, 9}}, AttnBackend::kReference}),
            "attention.schedule[1].steps");
  EXPECT_EQ(field({{.layers = Interval{6, 6}}, AttnBackend::kReference}),
            "attention.schedule[1].layers");
  EXPECT_EQ(field({{.sigma = SigmaRange{0.5, 0.2}}, AttnBackend::kReference}),
            "attention.schedule[1].sigma");
  EXPECT_EQ(field({{.role = AttentionRole::kVae}, AttnBackend::kReference}),
            "attention.schedule[1].role");
  EXPECT_EQ(field({{}, AttnBackend::kReference, R"({"x": 1})"}),
            "attention.schedule[1].parameters.x");
  EXPECT_EQ(field({{}, AttnBackend::kNoAttention}), "") << "it only prefers";
  EXPECT_EQ(field({{}, AttnBackend::kNoAttention, "", SelectionMode::kStrict}),
            "attention.schedule[1].backend");
  PlannerSubject subject;
  subject.attention.schedule.resize(AttentionOptions::kMaxRules + 1);
  EXPECT_THROW(CheckSchedule(setting_, subject, specs_), Error);
}

}  // namespace
}  // namespace denoised
