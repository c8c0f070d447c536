// No more jobs in memory between their steps than may stay: the others are in their checkpoints,
// and go on from there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/fake_engine.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using testing::Each;
using testing::SizeIs;

constexpr int64_t kHeld = 60;

class EngineResidents : public testing::Test {
 protected:
  // Room for one job that keeps kHeld bytes, not for two.
  EngineOptions OneStays() const {
    EngineOptions options;
    options.state_dir = folder_.path();
    options.checkpoint_every = 0;
    options.max_resident_bytes = kHeld + kHeld / 2;
    return options;
  }
  const TemporaryFolder folder_;
};

struct MostRuns {
  std::atomic<int64_t> most_runs = 0;
};

struct SmallEngine : MostRuns, FakeEngine {
  explicit SmallEngine(const EngineOptions& options, bool steps_open = true)
      : FakeEngine(options, steps_open, 2, [this](FakeModel* fake) {
          fake->estimate.held_bytes = fake->estimate.peak_bytes = kHeld;
          fake->on_unit = [this, fake](const Unit&, int64_t) {
            most_runs = std::max<int64_t>(most_runs, fake->live_runs);
          };
        }) {}
  // Stands in its first step.
  std::string Long(int64_t steps) {
    model.steps.Close();
    const std::string id = Submit("long", [&](auto& r) { r.num_inference_steps = steps; });
    EXPECT_TRUE(model.steps.AwaitArrival(1));
    return id;
  }
  std::string Urgent(int64_t steps = 3) {
    return Submit("urgent", [&](auto& r) {
      r.width = 128;
      r.num_inference_steps = steps;
      r.priority = Priority::kUrgent;
    });
  }
};

void ExpectStepsOnce(const JobSnapshot& job, int64_t steps) {
  int64_t next = 0;
  for (const ReceiptEntry& row : job.receipt.entries) {
    if (row.role != AttentionRole::kSelf) continue;
    EXPECT_EQ(row.first_step, next);
    next = row.last_step + 1;
  }
  EXPECT_EQ(next, steps);
}

TEST_F(EngineResidents, AJobThatIsPassedOverGoesOnFromItsCheckpointWithoutAnyStepTwice) {
  SmallEngine fake(OneStays());
  const std::string slow = fake.Long(20), urgent = fake.Urgent();
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  const JobSnapshot job = fake.Get(slow);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(fake.Get(urgent).state, JobState::kSucceeded);
  EXPECT_EQ(fake.observer.put_away, 1);
  EXPECT_EQ(fake.model.steps_run, 20 + 3);
  EXPECT_EQ(fake.most_runs, 1) << "two were in memory";
  EXPECT_EQ(job.attempt, 1) << "its run has not started anew";
  ExpectStepsOnce(job, 20);
}

TEST_F(EngineResidents, InMemoryAloneNothingIsMoved) {
  EngineOptions options = OneStays();
  options.state_dir.clear();
  SmallEngine fake(options);
  fake.Long(20);
  fake.Urgent();
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.put_away, 0);
  EXPECT_EQ(fake.most_runs, 2);
}

TEST_F(EngineResidents, WhileTheDiskIsFullNothingIsMoved) {
  SmallEngine fake(OneStays());
  fake.store->full = true;
  const std::string slow = fake.Long(20);
  fake.Urgent();
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.put_away, 0);
  ExpectStepsOnce(fake.Get(slow), 20);
}

TEST_F(EngineResidents, NobodyComesAlongWhoWouldHaveToGoAgain) {
  EngineOptions options = OneStays();
  options.policy = EngineOptions::Policy::kFifo;  // nobody is passed over
  SmallEngine fake(options);
  fake.Long(10);
  for (int i = 0; i < 3; ++i) fake.Submit("same", [](auto& r) { r.num_inference_steps = 10; });
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.model.forwards(), Each(SizeIs(1)));
  EXPECT_EQ(fake.observer.put_away, 0);
  EXPECT_EQ(fake.observer.finished[JobState::kSucceeded], 4);
}

TEST_F(EngineResidents, ACallThatIsDoneAfterItsStepPushesNobodyOut) {
  SmallEngine fake(OneStays());
  fake.Long(10);
  DenoiseRequest call;
  call.latents = {DType::kFloat32, {1}, std::string(4, '\0')};
  Promised<bool> answered;
  fake.engine->Denoise(call, nullptr, [&](Engine::DenoiseOutcome) { answered.Set(true); });
  fake.model.steps.Open();
  ASSERT_TRUE(answered.Await());
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.put_away, 0);
}

TEST_F(EngineResidents, WhatWasPutAwayCanBeSuspendedResumedAndCancelled) {
  SmallEngine fake(OneStays());
  const std::string slow = fake.Long(20);
  const int64_t before = fake.model.steps.arrivals();
  const std::string urgent = fake.Urgent();
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(before + 1));  // the urgent one's first
  ASSERT_EQ(fake.observer.put_away, 1);
  EXPECT_EQ(fake.Get(slow).state, JobState::kRunning);
  EXPECT_EQ(fake.engine->running_jobs(), 1);
  EXPECT_FALSE(fake.engine->Suspend(slow));
  EXPECT_EQ(fake.Get(slow).state, JobState::kSuspended);
  fake.model.steps.Open();
  fake.AwaitEnd(urgent);
  EXPECT_FALSE(fake.engine->Resume(slow));
  const JobSnapshot job = fake.AwaitEnd(slow);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(fake.model.steps_run, 20 + 3);
  ExpectStepsOnce(job, 20);
}

TEST_F(EngineResidents, AnotherBackendMeanwhileIsNoReasonToBeginAnew) {
  SmallEngine fake(OneStays());
  const std::string slow = fake.Long(20);
  fake.Urgent();
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(2));
  ASSERT_EQ(fake.observer.put_away, 1);
  fake.model.backends.sdpa_refuses = true;
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.model.steps_run, 20 + 3);
  ExpectStepsOnce(fake.Get(slow), 20);
}

TEST_F(EngineResidents, ACancelReachesWhatWasPutAway) {
  SmallEngine fake(OneStays());
  const std::string slow = fake.Long(20);
  const int64_t before = fake.model.steps.arrivals();
  fake.Urgent();
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(before + 1));
  fake.engine->Cancel(slow);
  EXPECT_EQ(fake.Get(slow).state, JobState::kCancelled);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.model.steps_run, 1 + 3);
}

TEST_F(EngineResidents, AStopIsNoCrashOfWhatWasPutAway) {
  std::string slow;
  {
    SmallEngine fake(OneStays());
    slow = fake.Long(20);
    fake.Urgent(50);
    fake.model.steps.Allow(1);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(2));
    ASSERT_EQ(fake.observer.put_away, 1);
    fake.engine->Stop();
    fake.model.steps.Open();
    fake.engine->Shutdown();
    EXPECT_EQ(fake.Get(slow).state, JobState::kQueued);
  }
  {
    std::FILE* stream = std::tmpfile();
    Logger logger(stream);
    const auto store = OpenJobStore({.state_dir = folder_.path(), .hooks = nullptr}, &logger);
    const auto jobs = store->Recover();
    ASSERT_THAT(jobs, SizeIs(2));
    for (const AcceptedJob& job : jobs) EXPECT_EQ(job.crashes, 0) << job.snapshot.prompt;
    EXPECT_EQ(jobs[0].checkpoint_step, 1);
  }
  SmallEngine fake(OneStays());
  const JobSnapshot job = fake.AwaitEnd(slow);
  EXPECT_EQ(job.state, JobState::kSucceeded) << (job.error ? job.error->message : "");
  EXPECT_EQ(job.attempt, 2);
  ExpectStepsOnce(job, 20);
}

}  // namespace
}  // namespace denoised
