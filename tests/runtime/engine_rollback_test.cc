// Steps that are undone: a lease's backend gives what is no result, and the step is done again
// without it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "runtime/pipelines/wan_step.h"
#include "tests/runtime/fake_engine.h"
#include "tests/runtime/leases.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAre;

constexpr AttnBackend kBad = AttnBackend::kSageAttn;

Error Wrong(const std::string& reason) {
  return Error(StatusCode::kInternal, "the latents are wrong", "", reason);
}

bool Runs(const AttentionPlan& plan, AttnBackend backend) {
  return std::ranges::any_of(plan[static_cast<size_t>(AttentionRole::kSelf)].slots,
                             [&](const AttentionSlot& slot) { return slot.id == backend; });
}

std::vector<std::string> SelfRows(const std::vector<ReceiptEntry>& entries) {
  std::vector<std::string> rows;
  for (const ReceiptEntry& row : entries) {
    if (row.role != AttentionRole::kSelf) continue;
    rows.push_back(std::to_string(row.first_step) + "-" + std::to_string(row.last_step) + " " +
                   std::string(AttnBackendName(row.ran)) + " x" + std::to_string(row.calls));
  }
  return rows;
}

// An engine whose steps go wrong where kBad runs.
struct RollbackTest : testing::Test {
  explicit RollbackTest(const std::string& reason = "NON_FINITE") { Spoil(reason); }

  void Spoil(const std::string& reason) {
    fake.model.on_result = [this, reason](const AttentionPlan& plan, const AttentionPlanner&) {
      ++tries;
      if (Runs(plan, kBad)) throw Wrong(reason);
    };
  }
  std::string Force(LeaseScope scope = {}, SelectionMode mode = SelectionMode::kPrefer) {
    LeaseRequest request{kBad};
    request.scope = std::move(scope);
    request.mode = mode;
    return fake.engine->policy().Force(std::move(request)).id;
  }
  std::string Ended() {
    for (const LeaseEvent& event : events) {
      if (event.kind == LeaseEvent::Kind::kEnded) return std::string(LeaseEndName(event.end));
    }
    return "";
  }
  void Listen() {
    fake.engine->policy().SetListener([this](const LeaseEvent& event) { events.push_back(event); });
  }

  std::vector<LeaseEvent> events;
  std::atomic<int> tries{0};
  FakeEngine fake;
};

TEST_F(RollbackTest, TheStepIsDoneAgainWithoutTheLeaseWhichEnds) {
  Listen();
  const std::string id = Force();
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"))
      << "the step that was undone is on no row";
  EXPECT_EQ(tries, 4) << "three steps, one of them twice";
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
  ASSERT_THAT(events, SizeIs(2));
  EXPECT_EQ(events[1].end, LeaseEnd::kNotFinite);
  EXPECT_THAT(events[1].why, AllOf(HasSubstr(job.id), HasSubstr("step 1"), HasSubstr(id),
                                   HasSubstr("the latents are wrong")));
  EXPECT_THAT(job.receipt.notes, Contains(AllOf(HasSubstr("step 1 was undone"), HasSubstr(id),
                                                HasSubstr("SAGE_ATTN"))));
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.observer.rollbacks, ElementsAre(std::pair(kBad, std::string("not_finite"))));
  EXPECT_THAT(fake.observer.switches, IsEmpty()) << "no step that counts ran with it";
  const std::pair self(AttnBackend::kTorchSdpa, AttentionRole::kSelf);
  EXPECT_EQ(fake.observer.attention[self], 6u);
  EXPECT_EQ(fake.observer.attention.count({kBad, AttentionRole::kSelf}), 0u);
}

TEST_F(RollbackTest, ItIsRepeatedOnlyFromTheStepThatWentWrong) {
  const std::string id = Force({.where = {.steps = Interval{1, 1}}});
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"));
  EXPECT_THAT(job.receipt.notes, Contains(HasSubstr("step 2 was undone")));
  EXPECT_EQ(tries, 4);
}

TEST_F(RollbackTest, LatentsThatAreAllEqualEndItToo) {
  Listen();
  Spoil("DEGENERATE");
  Force();
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("a job")).state, JobState::kSucceeded);
  EXPECT_EQ(Ended(), "degenerate");
}

TEST_F(RollbackTest, AStrictLeaseIsUndoneLikeAnyOther) {
  Force({}, SelectionMode::kStrict);
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("a job")).state, JobState::kSucceeded);
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
}

TEST_F(RollbackTest, WhereTheStepFailsWithoutTheLeaseToo) {
  const std::string id = Force();
  fake.model.on_result = [this](const AttentionPlan&, const AttentionPlanner&) {
    throw Error(StatusCode::kInternal, ++tries == 1 ? "the first time" : "the second time", "",
                "NON_FINITE");
  };
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->reason, "NON_FINITE");
  EXPECT_EQ(job.error->message, "the first time");
  EXPECT_EQ(tries, 2);
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1)) << "it is innocent";
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.observer.rollbacks, IsEmpty());
}

TEST_F(RollbackTest, EqualLatentsThatComeWithoutTheLeaseTooAreTakenAsTheyAre) {
  Force();
  fake.model.on_result = [this](const AttentionPlan&, const AttentionPlanner& planner) {
    ++tries;
    if (planner.suspects()) throw Wrong("DEGENERATE");
  };
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 SAGE_ATTN x6"));
  EXPECT_EQ(tries, 9) << "each step: with it, without it, with it";
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1));
  EXPECT_THAT(job.receipt.notes, IsEmpty());
}

TEST_F(RollbackTest, WithoutALeaseAJobFailsAsItDid) {
  const JobSnapshot job = fake.AwaitEnd(
      fake.Submit("a job", [](GenerationRequest& request) { request.attention.backend = kBad; }));
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(tries, 1);
}

TEST_F(RollbackTest, WhatTheJobItselfAskedForIsTheReference) {
  Force();
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job", [](GenerationRequest& request) {
    request.attention.backend = AttnBackend::kReference;
  }));
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 REFERENCE x6"));
}

// Cross-attention runs under the good one all the time.
TEST_F(RollbackTest, OfSeveralLeasesThoseThatAreToBlameEnd) {
  const Lease good = AddForce(fake.engine->policy(), AttnBackend::kReference);
  const std::string wide = Force(), narrow = Force({.model = "fake"});
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 REFERENCE x6"));
  const auto left = fake.engine->policy().List();
  ASSERT_THAT(left, SizeIs(1));
  EXPECT_EQ(left[0].id, good.id);
  EXPECT_EQ(tries, 6) << "both bad ones, the wide one, none; the narrow one, none; the last step";
  EXPECT_THAT(job.receipt.notes, SizeIs(2));
}

TEST_F(RollbackTest, APinnedJobIsFreedOfItAsWell) {
  Force();
  const JobSnapshot job = fake.AwaitEnd(
      fake.Submit("a job", [](GenerationRequest& request) { request.pin_backends = true; }));
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"));
  EXPECT_EQ(tries, 4);
}

TEST_F(RollbackTest, OthersInTheBatchAreUntouched) {
  fake.model.steps.Close();
  const std::string first = fake.Submit("canary");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const std::string second = fake.Submit("other");
  Force({.job = first, .where = {.steps = Interval{1, 2}}});
  fake.model.steps.Open();
  const JobSnapshot canary = fake.AwaitEnd(first), other = fake.AwaitEnd(second);
  EXPECT_THAT(fake.model.forwards(), Contains(SizeIs(2))) << "they shared forwards";
  for (const JobSnapshot& job : {canary, other}) {
    EXPECT_EQ(job.state, JobState::kSucceeded);
    EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"));
  }
  EXPECT_THAT(canary.receipt.notes, SizeIs(1));
  EXPECT_THAT(other.receipt.notes, IsEmpty());
  EXPECT_EQ(tries, 7) << "the canary's second step twice, of the other three";
}

TEST_F(RollbackTest, ACallsStepIsDoneAgainToo) {
  const std::string id = Force();
  Promised<Engine::DenoiseOutcome> outcome;
  DenoiseRequest request;
  request.latents = {DType::kFloat32, {1, 1, 1, 1, 1}, std::string(4, '\0')};
  fake.engine->Denoise(request, std::make_shared<CancelToken>(),
                       [&](Engine::DenoiseOutcome result) { outcome.Set(std::move(result)); });
  ASSERT_TRUE(outcome.Await());
  const auto value = outcome.value();
  const auto* result = std::get_if<DenoiseResult>(&value);
  ASSERT_NE(result, nullptr) << std::get<Error>(value).what();
  EXPECT_THAT(SelfRows(result->receipt.entries), ElementsAre("0-0 TORCH_SDPA x2"));
  EXPECT_THAT(result->receipt.notes, Contains(HasSubstr("without " + id)));
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
}

TEST_F(RollbackTest, ACancelBetweenTheTwoTriesIsACancel) {
  const std::string lease = Force();
  std::string id;
  fake.model.steps.Close();
  id = fake.Submit("a job");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(2)) << "it is tried again";
  fake.engine->Cancel(id);
  fake.model.on_step = [](const RunRequest&, int64_t) { StopPoint(); };
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kCancelled);
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1)) << "nothing is proven";
}

// Its checkpoint is of the step before: what went wrong goes wrong once more, and is undone then.
TEST_F(RollbackTest, AJobThatIsPutAsideBetweenTheTwoTriesIsFreedOfItWhenItGoesOn) {
  const std::string lease = Force();
  fake.model.steps.Close();
  const std::string id = fake.Submit("a job");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  ASSERT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Allow(1);
  ASSERT_TRUE(
      fake.Await(id, [](const JobSnapshot& job) { return job.state == JobState::kSuspended; }));
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1)) << "nothing is proven";
  fake.model.steps.Open();
  ASSERT_FALSE(fake.engine->Resume(id));
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"));
  EXPECT_THAT(job.receipt.notes, Contains(HasSubstr("without " + lease)));
  EXPECT_EQ(tries, 5);
}

TEST_F(RollbackTest, TheAuditTellsOfTheStepAndOfTheLease) {
  const std::string lease = Force();
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  std::vector<AuditEntry> told = fake.engine->audit().ReadAfter(0, 10);
  ASSERT_THAT(told, SizeIs(3));
  EXPECT_EQ(told[0].what, "force");
  EXPECT_EQ(told[1].what, "rollback");
  EXPECT_EQ(told[1].who, "server");
  EXPECT_EQ(told[1].subject, lease);
  EXPECT_EQ(told[1].old_value, "SAGE_ATTN");
  EXPECT_EQ(told[1].new_value, "TORCH_SDPA");
  EXPECT_THAT(told[1].reason, AllOf(HasSubstr("not_finite"), HasSubstr("job " + job.id),
                                    HasSubstr("step 1"), HasSubstr("the latents are wrong")));
  EXPECT_EQ(told[2].what, "end");
  EXPECT_EQ(told[2].subject, lease);
  EXPECT_THAT(told[2].reason, HasSubstr("not_finite"));
}

// What a job without the lease would have gone on with.
TEST_F(RollbackTest, EqualLatentsAreTakenWhereTheLeaseGaveWorse) {
  Force();
  fake.model.on_result = [this](const AttentionPlan& plan, const AttentionPlanner& planner) {
    ++tries;
    if (Runs(plan, kBad)) throw Wrong("NON_FINITE");
    if (planner.suspects()) throw Wrong("DEGENERATE");
  };
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"));
  EXPECT_EQ(tries, 5) << "of the first step: with it, without it, taken; two more";
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
}

TEST_F(RollbackTest, ManyLeasesThatHideOneAnotherCostAFewTries) {
  for (int i = 0; i < 12; ++i) Force();
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"));
  EXPECT_EQ(tries, 30) << "of each step nine one by one, then without any";
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(9));
}

// Whichever is looked at first: the step is done as if the bad one alone had not been.
TEST_F(RollbackTest, ALeaseOfOtherLayersStaysAndServesThem) {
  for (int bad : {0, 1}) {
    const int before = tries;
    LeaseRequest good{AttnBackend::kReference};
    good.scope.where.layers = Interval{1 - bad, 1 - bad};
    const std::string kept = fake.engine->policy().Force(good).id;
    Force({.where = {.layers = Interval{bad, bad}}});
    const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
    EXPECT_EQ(job.state, JobState::kSucceeded);
    const auto left = fake.engine->policy().List();
    ASSERT_THAT(left, SizeIs(1));
    EXPECT_EQ(left[0].id, kept);
    EXPECT_THAT(SelfRows(job.receipt.entries),
                UnorderedElementsAre("0-2 TORCH_SDPA x3", "0-2 REFERENCE x3"));
    EXPECT_EQ(tries - before, 4);
    fake.engine->policy().Clear();
  }
}

TEST_F(RollbackTest, TheNewerOfTwoAsNarrowIsLookedAtFirst) {
  Force({.where = {.layers = Interval{0, 0}}});
  LeaseRequest good{AttnBackend::kReference};
  good.scope.where.layers = Interval{1, 1};
  const std::string kept = fake.engine->policy().Force(good).id;
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(tries, 5) << "without the good one, then without the bad one";
  EXPECT_THAT(SelfRows(job.receipt.entries),
              UnorderedElementsAre("0-2 TORCH_SDPA x3", "0-2 REFERENCE x3"));
  ASSERT_THAT(fake.engine->policy().List(), SizeIs(1));
  EXPECT_EQ(fake.engine->policy().List()[0].id, kept);
}

TEST_F(RollbackTest, OfTwoThatAreBothToBlameBothEnd) {
  Force({.where = {.layers = Interval{0, 0}}});
  Force({.where = {.layers = Interval{1, 1}}});
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(job.receipt.entries), ElementsAre("0-2 TORCH_SDPA x6"));
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
  EXPECT_EQ(tries, 7) << "both, each, none; the other one, none; the last step";
}

// A job's own rule is a wish of its own, and no lease: nobody takes it away.
TEST_F(RollbackTest, ARuleOfTheJobsScheduleThatGoesWrongFailsIt) {
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job", [](GenerationRequest& request) {
    request.attention.schedule = {{.where = {.steps = Interval{1, 1}}, .backend = kBad}};
  }));
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->reason, "NON_FINITE");
  EXPECT_EQ(tries, 2);
}

TEST_F(RollbackTest, ASessionsStepIsDoneAgainToo) {
  const std::string lease = Force();
  const auto owner = std::make_shared<SessionOwner>();
  Promised<SessionReply> opened, stepped;
  SessionRequest request;
  request.generation.prompt = "a session";
  fake.engine->OpenSession(owner, request, [&](SessionReply reply) { opened.Set(reply); });
  ASSERT_TRUE(opened.Await());
  fake.engine->AskSession(owner, opened.value().state.id, SessionStep{2},
                          [&](SessionReply reply) { stepped.Set(reply); });
  ASSERT_TRUE(stepped.Await());
  const SessionReply reply = stepped.value();
  EXPECT_FALSE(reply.error) << reply.error->what();
  EXPECT_THAT(SelfRows(reply.receipt->entries), ElementsAre("0-1 TORCH_SDPA x4"));
  EXPECT_THAT(reply.receipt->notes, Contains(HasSubstr("without " + lease)));
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
  EXPECT_EQ(tries, 3);
  fake.engine->LeaveSessions(owner);
}

// What was avoided for a step that failed in the end is not avoided in the next one.
TEST_F(RollbackTest, ASessionWhoseStepFailsForGoodHasItsLeasesAfterwards) {
  Force();
  bool broken = true;
  fake.model.on_result = [&](const AttentionPlan&, const AttentionPlanner&) {
    if (broken) throw Wrong("NON_FINITE");
  };
  const auto owner = std::make_shared<SessionOwner>();
  Promised<SessionReply> opened, failed, stepped;
  SessionRequest request;
  request.generation.prompt = "a session";
  fake.engine->OpenSession(owner, request, [&](SessionReply reply) { opened.Set(reply); });
  ASSERT_TRUE(opened.Await());
  const auto step = [&](Promised<SessionReply>* answer) {
    fake.engine->AskSession(owner, opened.value().state.id, SessionStep{1},
                            [answer](SessionReply reply) { answer->Set(reply); });
    return answer->Await();
  };
  ASSERT_TRUE(step(&failed));
  ASSERT_TRUE(failed.value().error);
  EXPECT_EQ(failed.value().error->reason(), "NON_FINITE");
  broken = false;
  ASSERT_TRUE(step(&stepped));
  EXPECT_THAT(SelfRows(stepped.value().receipt->entries), ElementsAre("0-0 SAGE_ATTN x2"));
  EXPECT_THAT(stepped.value().receipt->notes, IsEmpty());
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1));
  fake.engine->LeaveSessions(owner);
}

TEST_F(RollbackTest, ReceiptsAndCountersTellTheSameOfStepsThatWereUndone) {
  Force();
  std::vector<std::string> ids;
  fake.model.steps.Close();
  for (int i = 0; i < 4; ++i) ids.push_back(fake.Submit("job " + std::to_string(i)));
  fake.model.steps.Open();
  std::map<std::pair<AttnBackend, AttentionRole>, uint64_t> calls;
  for (const std::string& id : ids) {
    for (const ReceiptEntry& row : fake.AwaitEnd(id).receipt.entries) {
      calls[{row.ran, row.role}] += row.calls;
    }
  }
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.attention, calls);
}

// ---- what a model's step gives
// -------------------------------------------------------------------

struct UnsoundTest : testing::Test {
  std::string Reason(const at::Tensor& latents) {
    AttentionPlanner planner(setting, {}, &observer);
    planner.Prepare({SelfSpec()}, 0, 1, 1.0);
    const auto error = WhyUnsound(latents, planner, "they are", " here");
    if (!error) return "";
    EXPECT_THAT(error->what(), AllOf(HasSubstr("they are "), HasSubstr(" here")));
    return error->reason();
  }

  InventedBackends backends;
  SelectionPolicy policy;
  CountingObserver observer;
  PlannerSetting setting{&backends.registry, &policy, {}};
};

TEST_F(UnsoundTest, NumbersThatAreNotFiniteAreNoResultWhoeverGaveThem) {
  for (double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    at::Tensor latents = at::arange(24).to(at::kFloat).reshape({2, 3, 1, 2, 2});
    EXPECT_EQ(Reason(latents), "");
    latents[1][2][0][1][1] = bad;
    EXPECT_EQ(Reason(latents), "NON_FINITE");
  }
}

TEST_F(UnsoundTest, UnderALeaseARowOfEqualNumbersIsNoneEither) {
  at::Tensor latents = at::ones({2, 3, 1, 2, 2});
  EXPECT_EQ(Reason(latents), "") << "nobody else could have done better";
  AddForce(policy, AttnBackend::kReference);
  EXPECT_EQ(Reason(latents), "DEGENERATE");
  latents[0][0][0][0][1] = 2;
  EXPECT_EQ(Reason(latents), "DEGENERATE") << "the other row";
  latents[1][2][0][1][1] = 2;
  EXPECT_EQ(Reason(latents), "");
  EXPECT_EQ(Reason(at::ones({1, 1, 1, 1, 1})), "") << "one number is no pattern";
}

}  // namespace
}  // namespace denoised
