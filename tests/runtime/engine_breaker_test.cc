// Backends that throw: the unit is done without them, and after a few nobody is given them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

constexpr AttnBackend kBad = AttnBackend::kSageAttn;

std::vector<std::string> SelfRows(const JobSnapshot& job) {
  std::vector<std::string> rows;
  for (const ReceiptEntry& row : job.receipt.entries) {
    if (row.role != AttentionRole::kSelf) continue;
    rows.push_back(std::to_string(row.first_step) + "-" + std::to_string(row.last_step) + " " +
                   std::string(AttnBackendName(row.ran)));
  }
  return rows;
}

struct BreakerTest : testing::Test {
  BreakerTest() {
    fake.model.on_attention = [this](AttnBackend backend) {
      if (backend != kBad) return;
      ++calls;
      if (broken) throw std::runtime_error("it broke");
    };
  }
  // A job of so many steps that wants kBad.
  std::string Submit(int64_t steps, SelectionMode mode = SelectionMode::kPrefer) {
    return fake.Submit("a job", [&](GenerationRequest& request) {
      request.num_inference_steps = steps;
      request.attention.backend = kBad;
      request.attention.mode = mode;
    });
  }
  JobSnapshot Run(int64_t steps) { return fake.AwaitEnd(Submit(steps)); }

  std::atomic<bool> broken{true};
  std::atomic<int> calls{0};
  FakeEngine fake;
};

TEST_F(BreakerTest, AStepInWhichABackendThrowsIsDoneWithoutIt) {
  const JobSnapshot job = Run(2);
  EXPECT_EQ(job.state, JobState::kSucceeded) << job.error->message;
  EXPECT_THAT(SelfRows(job), ElementsAre("0-1 TORCH_SDPA"));
  EXPECT_EQ(calls, 2) << "each step tries it";
  EXPECT_THAT(fake.engine->Breakers(), IsEmpty());
  const ReceiptEntry& row = job.receipt.entries.at(0);
  EXPECT_EQ(row.asked, kBad);
  EXPECT_THAT(row.selection.Reason(), HasSubstr("failed in this unit: it broke"));
  EXPECT_THAT(job.receipt.notes, ElementsAre(HasSubstr("step 1 was undone"),
                                             AllOf(HasSubstr("step 2"), HasSubstr("it broke"))));
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.observer.rollbacks, SizeIs(2));
  EXPECT_THAT(fake.observer.rollbacks, Contains(std::pair(kBad, std::string("failed"))));
}

TEST_F(BreakerTest, ThreeStepsInARowOpenIt) {
  const JobSnapshot job = Run(8);
  EXPECT_EQ(calls, 3);
  const auto open = fake.engine->Breakers();
  ASSERT_THAT(open, SizeIs(1));
  EXPECT_EQ(open[0].model, "fake");
  EXPECT_EQ(open[0].backend, kBad);
  EXPECT_EQ(open[0].last_error, "it broke");
  EXPECT_EQ(open[0].state, BreakerState::kOpen);
  const std::string sentence = "circuit breaker open after 3 failures: it broke";
  for (const ReceiptEntry& row : job.receipt.entries) {
    const bool after = row.role == AttentionRole::kSelf && row.first_step > 2;
    EXPECT_EQ(row.selection.Reason().find(sentence) != std::string::npos, after);
  }
  ExplainQuery query;
  query.attention.backend = kBad;
  const Explanation self = fake.engine->Explain(query).at(0);
  EXPECT_EQ(self.selection.granted.backend, AttnBackend::kTorchSdpa);
  EXPECT_THAT(self.selection.Reason(), HasSubstr(sentence));
  const auto candidate = std::ranges::find(self.candidates, kBad, &Explanation::Candidate::backend);
  EXPECT_EQ(candidate->why_not.value_or(""), sentence + "; probe in 60 s");
  for (const BackendInfo& backend : fake.engine->ListBackends()) {
    EXPECT_THAT(backend.breakers, SizeIs(backend.backend == kBad ? 1 : 0));
    if (backend.backend == kBad) {
      EXPECT_FALSE(backend.why_not) << "it could serve";
    }
  }
}

TEST_F(BreakerTest, AStrictRequestForAnOpenBackendFailsByName) {
  Run(3);
  GenerationRequest request = SmallRequest("strict");
  request.attention.backend = kBad;
  request.attention.mode = SelectionMode::kStrict;
  const auto result = fake.engine->Submit(request);
  ASSERT_TRUE(std::holds_alternative<Error>(result));
  EXPECT_EQ(std::get<Error>(result).reason(), "BACKEND_REFUSED");
  EXPECT_THAT(std::get<Error>(result).what(),
              AllOf(HasSubstr("SAGE_ATTN"), HasSubstr("circuit breaker open")));
}

TEST_F(BreakerTest, AStrictRequestForABackendThatThrowsFailsWithWhatItThrew) {
  const JobSnapshot job = fake.AwaitEnd(Submit(3, SelectionMode::kStrict));
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->code, StatusCode::kInternal);
  EXPECT_THAT(job.error->message, AllOf(HasSubstr("it broke"), HasSubstr("SAGE_ATTN")));
  EXPECT_EQ(calls, 1);
}

TEST_F(BreakerTest, AfterAMinuteOneStepProbesIt) {
  Run(3);
  fake.clock.Advance(std::chrono::seconds(59));
  EXPECT_THAT(SelfRows(Run(2)), ElementsAre("0-1 TORCH_SDPA"));
  EXPECT_EQ(calls, 3) << "nobody has it";
  fake.clock.Advance(std::chrono::seconds(1));
  broken = false;
  EXPECT_THAT(SelfRows(Run(2)), ElementsAre("0-1 SAGE_ATTN"));
  EXPECT_THAT(fake.engine->Breakers(), IsEmpty());
}

TEST_F(BreakerTest, AProbeThatFailsOpensItAgain) {
  Run(3);
  fake.clock.Advance(std::chrono::seconds(60));
  EXPECT_EQ(fake.engine->Breakers().at(0).state, BreakerState::kHalfOpen);
  EXPECT_THAT(SelfRows(Run(5)), ElementsAre("0-0 TORCH_SDPA", "1-4 TORCH_SDPA"));
  EXPECT_EQ(calls, 4) << "one probe";
  EXPECT_EQ(fake.engine->Breakers().at(0).remaining, std::chrono::seconds(60));
}

TEST_F(BreakerTest, ARunningJobGoesBackToItWhenItIsClosed) {
  Run(3);
  broken = false;
  fake.model.steps.Close();
  const int64_t before = fake.model.steps.arrivals();
  const std::string id = Submit(4);
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(before + 2));
  fake.clock.Advance(std::chrono::seconds(60));
  fake.model.steps.Open();
  EXPECT_THAT(SelfRows(fake.AwaitEnd(id)), ElementsAre("0-1 TORCH_SDPA", "2-3 SAGE_ATTN"));
}

TEST_F(BreakerTest, OfJobsThatShareForwardsOneProbesAndTheOthersWait) {
  Run(3);
  fake.clock.Advance(std::chrono::seconds(60));
  broken = false;
  calls = 0;
  fake.model.steps.Close();
  const int64_t before = fake.model.steps.arrivals();
  const std::string first = fake.Submit("holds the device");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(before + 1));
  const std::string second = Submit(3), third = Submit(3);
  int at_once = 0, most = 0;
  fake.model.on_unit = [&](const Unit&, int64_t) {
    most = std::max(most, std::exchange(at_once, 0));
  };
  fake.model.on_attention = [&](AttnBackend backend) {
    if (backend == kBad && !fake.engine->Breakers().empty()) ++at_once;
  };
  fake.model.steps.Open();
  fake.AwaitEnd(second);
  fake.AwaitEnd(third);
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(most, 1) << "while it was half open";
  EXPECT_THAT(fake.engine->Breakers(), IsEmpty());
}

TEST_F(BreakerTest, AJobThatEndsWithoutAResultGivesItsProbeBack) {
  Run(3);
  fake.clock.Advance(std::chrono::seconds(60));
  broken = false;
  fake.model.on_step = [](const RunRequest& request, int64_t) {
    if (request.prompt == "fails") throw Error(StatusCode::kInternal, "else", "", "ELSE");
  };
  const std::string id =
      fake.Submit("fails", [](GenerationRequest& request) { request.attention.backend = kBad; });
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kFailed);
  EXPECT_THAT(SelfRows(Run(2)), ElementsAre("0-1 SAGE_ATTN"));
}

TEST_F(BreakerTest, OthersInTheBatchLoseNothing) {
  fake.model.steps.Close();
  const std::string first = fake.Submit("first");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const std::string second = Submit(3);
  fake.model.steps.Open();
  const JobSnapshot other = fake.AwaitEnd(first), own = fake.AwaitEnd(second);
  EXPECT_EQ(own.state, JobState::kSucceeded);
  EXPECT_EQ(other.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(other), ElementsAre("0-2 TORCH_SDPA"));
  EXPECT_THAT(other.receipt.notes, IsEmpty());
  EXPECT_THAT(fake.model.forwards(), Contains(SizeIs(2)));
  EXPECT_THAT(fake.engine->Breakers(), SizeIs(1)) << "a failure each, however many shared it";
}

TEST_F(BreakerTest, ALeaseForItStaysAndItsJobsGoOnWithoutIt) {
  AddForce(fake.engine->policy(), kBad);
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1));
  EXPECT_THAT(fake.engine->Breakers(), SizeIs(1));
}

TEST_F(BreakerTest, AStopThatComesOutOfABackendIsNoFailureOfIt) {
  fake.model.on_attention = [](AttnBackend) { StopPoint(); };
  fake.model.steps.Close();
  const std::string id = Submit(6);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.engine->Cancel(id);
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kCancelled);
  EXPECT_THAT(fake.engine->Breakers(), IsEmpty());
}

TEST_F(BreakerTest, WhereEverybodyThrowsTheJobFailsWithTheFirst) {
  fake.model.on_attention = [](AttnBackend backend) {
    throw std::runtime_error(std::string(AttnBackendName(backend)) + " broke");
  };
  const JobSnapshot job = Run(2);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->code, StatusCode::kInternal);
  EXPECT_THAT(job.error->message, AllOf(HasSubstr("SAGE_ATTN broke"), HasSubstr("REFERENCE")));
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("the next")).state, JobState::kFailed);
}

TEST_F(BreakerTest, MemoryThatRanOutIsNoFaultThatABreakerCounts) {
  fake.model.on_attention = [this](AttnBackend backend) {
    if (backend != kBad) return;
    ++calls;
    throw std::bad_alloc();
  };
  const JobSnapshot job = Run(5);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(job), ElementsAre("0-4 TORCH_SDPA"));
  EXPECT_EQ(calls, 5);
  EXPECT_THAT(fake.engine->Breakers(), IsEmpty());
}

TEST_F(BreakerTest, TheAuditTellsWhenOneOpensAndCloses) {
  Run(3);
  fake.clock.Advance(std::chrono::seconds(60));
  Run(1);
  fake.clock.Advance(std::chrono::seconds(60));
  broken = false;
  Run(1);
  ASSERT_TRUE(fake.WaitIdle());
  const std::vector<AuditEntry> told = fake.engine->audit().ReadAfter(0, 10);
  std::vector<std::string> changes;
  for (const AuditEntry& entry : told) {
    EXPECT_EQ(entry.what, "breaker");
    EXPECT_EQ(entry.who, "server");
    EXPECT_THAT(entry.subject, HasSubstr("SAGE_ATTN of fake, self "));
    EXPECT_EQ(entry.ends_at.has_value(), entry.new_value == "open");
    changes.push_back(entry.old_value + " to " + entry.new_value);
  }
  EXPECT_THAT(changes, ElementsAre("closed to open", "half_open to open", "half_open to closed"));
  EXPECT_EQ(told.at(0).reason, "3 failures: it broke");
}

TEST_F(BreakerTest, AStrictRuleForAnOpenBackendIsRefusedByItsIndex) {
  Run(3);
  GenerationRequest request = SmallRequest("strict");
  request.attention.schedule = {{.backend = AttnBackend::kReference},
                                {.backend = kBad, .mode = SelectionMode::kStrict}};
  const auto result = fake.engine->Submit(request);
  ASSERT_TRUE(std::holds_alternative<Error>(result));
  EXPECT_EQ(std::get<Error>(result).field(), "attention.schedule[1].backend");
  EXPECT_THAT(std::get<Error>(result).what(), HasSubstr("circuit breaker open"));
}

// A breaker opens and closes by itself: what it hides now is no other work.
TEST_F(BreakerTest, ACheckpointOfATimeWithAnOpenBreakerIsGoneOnFromWithoutIt) {
  Run(3);
  fake.model.steps.Close();
  const int64_t before = fake.model.steps.arrivals();
  const std::string id = Submit(3);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(before + 1));
  ASSERT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Allow(1);
  ASSERT_TRUE(
      fake.Await(id, [](const JobSnapshot& job) { return job.state == JobState::kSuspended; }));
  broken = false;
  fake.clock.Advance(std::chrono::seconds(60));
  fake.model.steps.Open();
  ASSERT_FALSE(fake.engine->Resume(id));
  EXPECT_THAT(SelfRows(fake.AwaitEnd(id)), ElementsAre("0-0 TORCH_SDPA", "1-2 SAGE_ATTN"));
  EXPECT_EQ(fake.observer.resumed, 1);
  EXPECT_EQ(fake.observer.begun_again, 0);
}

TEST_F(BreakerTest, AFailureWhilePromptsAreEncodedIsNoneOfALeases) {
  AddForce(fake.engine->policy(), kBad);
  broken = false;
  fake.model.on_begin = [](const RunRequest&) {
    throw Error(StatusCode::kInternal, "no prompt", "", "ELSE");
  };
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  EXPECT_EQ(job.error->message, "no prompt");
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1));
}

TEST_F(BreakerTest, DrillsAreOffUnlessTheEngineSaysSo) {
  try {
    fake.engine->Drill({kBad, Fault::kThrow, std::chrono::seconds(1)});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(error.reason(), "DRILLS_OFF");
  }
}

TEST(Drills, ReachTheBackendsOfRunningJobs) {
  EngineOptions options;
  options.enable_drills = true;
  FakeEngine fake(options);
  AddForce(fake.engine->policy(), kBad);
  fake.engine->Drill({kBad, Fault::kNan, std::chrono::seconds(5)});
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("nan")).state, JobState::kSucceeded);
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty()) << "the lease gave NaN";
  AddForce(fake.engine->policy(), kBad);
  fake.engine->Drill({kBad, Fault::kThrow, std::chrono::seconds(5)});
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("throw")).state, JobState::kSucceeded);
  EXPECT_THAT(fake.engine->Breakers(), SizeIs(1));
  EXPECT_THAT(fake.engine->Breakers().at(0).last_error, HasSubstr("as a drill told it to"));
}

}  // namespace
}  // namespace denoised
