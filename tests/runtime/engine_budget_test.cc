// Budgets of leases, and shadows, as the engine has them: over a model without tensors, whose steps
// say by themselves that a budget was broken (shadows_test has the comparisons).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/fake_engine.h"
#include "tests/runtime/leases.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr AttnBackend kFar = AttnBackend::kSageAttn;

LeaseRequest Budgeted(LeaseScope scope = {}) {
  LeaseRequest request{kFar};
  request.scope = std::move(scope);
  request.budget = Budget{ErrorMetric::kRelativeL2, Statistic::kP99, 0.02, 200};
  return request;
}

// The leases with a budget that layers of the unit run under have broken it.
struct BudgetTest : testing::Test {
  explicit BudgetTest(EngineOptions options = {}) : fake(options) {
    fake.model.on_result = [this](const AttentionPlan&, const AttentionPlanner& planner) {
      ++tries;
      for (const Wish& wish : planner.Leased()) {
        const auto lease = std::ranges::find(leases, wish.lease_id);
        if (lease == leases.end()) continue;
        throw Error(StatusCode::kInternal, "its budget is broken", wish.lease_id, "BUDGET");
      }
    };
  }
  std::string Force(LeaseScope scope = {}) {
    const std::string id = fake.engine->policy().Force(Budgeted(std::move(scope))).id;
    leases.push_back(id);
    return id;
  }
  static std::vector<AttnBackend> SelfRan(const JobSnapshot& job) {
    std::vector<AttnBackend> ran;
    for (const ReceiptEntry& row : job.receipt.entries) {
      if (row.role == AttentionRole::kSelf) ran.push_back(row.ran);
    }
    return ran;
  }

  std::vector<std::string> leases;  // that are too far off
  std::atomic<int> tries{0};
  FakeEngine fake;
};

TEST_F(BudgetTest, TheStepIsDoneAgainWithoutTheLeaseWhichEnds) {
  const std::string id = Force();
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRan(job), ElementsAre(AttnBackend::kTorchSdpa));
  EXPECT_EQ(tries, 4) << "three steps, the first one twice";
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
  EXPECT_THAT(job.receipt.notes,
              Contains(AllOf(HasSubstr("step 1 was undone"), HasSubstr(id), HasSubstr("budget"))));
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.observer.rollbacks, ElementsAre(std::pair(kFar, std::string("budget"))));
  const std::vector<AuditEntry> told = fake.engine->audit().ReadAfter(0, 10);
  ASSERT_THAT(told, SizeIs(3));
  EXPECT_EQ(told[1].what, "end");
  EXPECT_THAT(told[1].reason, AllOf(HasSubstr("budget"), HasSubstr(job.id), HasSubstr("broken")));
  EXPECT_EQ(told[2].what, "rollback");
  EXPECT_EQ(told[2].subject, id);
}

TEST_F(BudgetTest, ALeaseThatHidesBehindItIsLeftAlone) {
  const Lease good = AddForce(fake.engine->policy(), AttnBackend::kReference);
  Force();
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_THAT(SelfRan(job), ElementsAre(AttnBackend::kReference));
  const auto left = fake.engine->policy().List();
  ASSERT_THAT(left, SizeIs(1));
  EXPECT_EQ(left[0].id, good.id);
}

TEST_F(BudgetTest, SeveralThatAreBrokenInOneStepAllEndAndAreTold) {
  for (int i = 0; i < 6; ++i) Force();
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRan(job), ElementsAre(AttnBackend::kTorchSdpa));
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.observer.rollbacks, SizeIs(job.receipt.notes.size()));
  EXPECT_GE(job.receipt.notes.size(), 5u);
}

TEST_F(BudgetTest, APinnedJobIsFreedOfItAsWell) {
  Force();
  const JobSnapshot job = fake.AwaitEnd(
      fake.Submit("a job", [](GenerationRequest& request) { request.pin_backends = true; }));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRan(job), ElementsAre(AttnBackend::kTorchSdpa));
  EXPECT_EQ(tries, 4);
}

TEST_F(BudgetTest, WhatFailsInTheSecondTryFailsByItself) {
  const std::string id = Force();
  fake.model.on_result = [&](const AttentionPlan&, const AttentionPlanner& planner) {
    const bool first = !planner.Leased().empty();
    throw Error(StatusCode::kInternal, first ? "its budget is broken" : "not finite",
                first ? id : "", first ? "BUDGET" : "NON_FINITE");
  };
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->reason, "NON_FINITE");
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty()) << "the budget was broken all the same";
}

TEST_F(BudgetTest, ABudgetIsTaken) { EXPECT_FALSE(fake.engine->CheckForce(Budgeted())); }

TEST(Budgets, WhereNothingIsComparedTheyAreRefusedAndEndWithTheServerThatJudgedThem) {
  const TemporaryFolder folder;
  EngineOptions options;
  options.state_dir = folder.path();
  std::string with, without;
  {
    FakeEngine before(options);
    with = before.engine->policy().Force(Budgeted()).id;
    without = AddForce(before.engine->policy(), AttnBackend::kReference).id;
  }
  options.shadow_budget = 0;
  FakeEngine fake(options);
  const auto left = fake.engine->policy().List();
  ASSERT_THAT(left, SizeIs(1));
  EXPECT_EQ(left[0].id, without);
  const std::vector<AuditEntry> told = fake.engine->audit().ReadAfter(0, 10);
  EXPECT_EQ(told.back().subject, with);
  EXPECT_THAT(told.back().reason, HasSubstr("--shadow_budget=0"));
  const auto refused = fake.engine->CheckForce(Budgeted());
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->reason(), "SHADOWS_OFF");
  EXPECT_EQ(refused->field(), "budget");
}

// ---- shadows -----------------------------------------------------------------------------------

Error RefusedShadow(Engine& engine, const ShadowRequest& request) {
  try {
    engine.Shadow(request);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "it was taken";
  return Error(StatusCode::kOk, "");
}

TEST(EngineShadows, BeginAndEndAndStayListed) {
  FakeEngine fake;
  const ShadowInfo first = fake.engine->Shadow({.candidate = kFar});
  const ShadowInfo second = fake.engine->Shadow(
      {.candidate = AttnBackend::kReference, .baseline = kFar, .ttl = std::chrono::seconds(5)});
  EXPECT_EQ(fake.engine->StopShadow(first.id).end, "stopped");
  EXPECT_EQ(RefusedShadow(*fake.engine, {.candidate = kFar, .share = 2}).field(), "share_percent");
  const auto listed = fake.engine->ListShadows();
  ASSERT_THAT(listed, SizeIs(2));
  EXPECT_EQ(listed[0].id, second.id);
  EXPECT_EQ(listed[0].remaining, std::chrono::seconds(5));
  EXPECT_EQ(listed[1].end, "stopped");
  EXPECT_THROW(fake.engine->StopShadow(first.id), Error);
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("a job")).state, JobState::kSucceeded);
}

TEST(EngineShadows, WhatCannotServeIsRefusedByItsSide) {
  FakeEngine fake;
  Error error = RefusedShadow(*fake.engine, {.candidate = AttnBackend::kCudnnAttn});
  EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(error.field(), "candidate");
  error = RefusedShadow(*fake.engine, {.candidate = kFar, .baseline = AttnBackend::kCudnnAttn});
  EXPECT_EQ(error.field(), "baseline");
  error = RefusedShadow(*fake.engine, {.candidate = kFar, .scope = {.model = "other"}});
  EXPECT_EQ(error.field(), "scope.model");
}

TEST(EngineShadows, ADrainEndsThemAndTakesNoMore) {
  FakeEngine fake;
  fake.engine->Shadow({.candidate = kFar});
  fake.engine->Drain();
  EXPECT_EQ(fake.engine->ListShadows().at(0).end, "the server is draining");
  EXPECT_EQ(RefusedShadow(*fake.engine, {.candidate = kFar}).reason(), "DRAINING");
  EXPECT_THAT(fake.engine->ListShadows().at(0).remaining, std::chrono::milliseconds(0));
}

TEST(EngineShadows, AreOffWithoutTime) {
  EngineOptions options;
  options.shadow_budget = 0;
  FakeEngine fake(options);
  EXPECT_EQ(RefusedShadow(*fake.engine, {.candidate = kFar}).reason(), "SHADOWS_OFF");
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("a job")).state, JobState::kSucceeded);
}

// A limit that leaves a job its own size, and less than what may be kept beside it.
TEST(EngineShadows, WhatTheyMayKeepIsNotPromisedToAJob) {
  EXPECT_EQ(MostShadowBytes("none"), int64_t{512} << 20);
  EXPECT_EQ(MostShadowBytes("3200MiB"), int64_t{100} << 20);
  EngineOptions options;
  options.max_memory = "320000MiB";
  FakeEngine fake(options);
  fake.model.estimate.peak_bytes = (int64_t{320000} << 20) - ResidentBytes() - (int64_t{128} << 20);
  EXPECT_FALSE(fake.Submit("a job").empty());
  const ShadowInfo shadow = fake.engine->Shadow({.candidate = kFar});
  const auto refused = fake.engine->Submit(SmallRequest("another"));
  ASSERT_TRUE(std::holds_alternative<Error>(refused));
  EXPECT_EQ(std::get<Error>(refused).reason(), "MEMORY");
  fake.engine->StopShadow(shadow.id);
  EXPECT_FALSE(fake.Submit("another").empty());
  const std::string lease = fake.engine->policy().Force(Budgeted()).id;
  EXPECT_TRUE(std::holds_alternative<Error>(fake.engine->Submit(SmallRequest("with a budget"))));
  fake.engine->policy().Release(lease);
  EXPECT_FALSE(fake.Submit("without").empty());
}

}  // namespace
}  // namespace denoised
