// Many pieces of work on one engine: what shares a forward, what comes first, what fails alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::HasSubstr;

// A job that stands in its first step while others come.
std::string StartBlocked(FakeEngine& fake, const std::string& prompt, int64_t steps) {
  fake.model.steps.Close();
  const int64_t before = fake.model.steps.arrivals();
  const std::string id =
      fake.Submit(prompt, [&](GenerationRequest& r) { r.num_inference_steps = steps; });
  EXPECT_TRUE(fake.model.steps.AwaitArrival(before + 1));
  return id;
}

size_t LargestForward(const FakeModel& model) {
  size_t most = 0;
  for (const auto& forward : model.forwards()) most = std::max(most, forward.size());
  return most;
}

// The number of the last forward that the prompt was in.
int64_t LastForwardOf(const FakeModel& model, const std::string& prompt) {
  const auto forwards = model.forwards();
  for (auto i = static_cast<int64_t>(forwards.size()) - 1; i >= 0; --i) {
    const auto& prompts = forwards[static_cast<size_t>(i)];
    if (std::find(prompts.begin(), prompts.end(), prompt) != prompts.end()) return i;
  }
  return -1;
}

TEST(EngineMany, JobsOfOneSizeShareForwards) {
  FakeEngine fake;
  StartBlocked(fake, "first", 40);
  for (const char* prompt : {"second", "third", "fourth"}) {
    fake.Submit(prompt, [](GenerationRequest& r) { r.num_inference_steps = 40; });
  }
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_GE(LargestForward(fake.model), 2u);
  EXPECT_EQ(fake.model.steps_run, 4 * 40);
  EXPECT_EQ(fake.observer.finished[JobState::kSucceeded], 4);
}

TEST(EngineMany, JobsOfTwoSizesShareNone) {
  FakeEngine fake;
  StartBlocked(fake, "small", 10);
  fake.Submit("large", [](GenerationRequest& r) { r.width = 128; });
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(LargestForward(fake.model), 1u);
}

TEST(EngineMany, WithoutBatchingNobodySharesAForward) {
  EngineOptions options;
  options.batching = false;
  FakeEngine fake(options);
  StartBlocked(fake, "first", 10);
  fake.Submit("second");
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(LargestForward(fake.model), 1u);
}

TEST(EngineMany, NoForwardHasMoreRowsThanAreAllowed) {
  EngineOptions options;
  options.max_batch_rows = 4;
  FakeEngine fake(options);
  std::atomic<int64_t> most{0};
  fake.model.on_unit = [&](const Unit&, int64_t rows) { most = std::max<int64_t>(most, rows); };
  StartBlocked(fake, "first", 30);
  for (int i = 0; i < 6; ++i) {
    fake.Submit("more", [](GenerationRequest& r) { r.num_inference_steps = 30; });
  }
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_LE(most, 4);
}

TEST(EngineMany, NoMoreJobsBeginThanMayAndAllOfThemEnd) {
  for (int64_t most : {1, 2, 3}) {
    EngineOptions options;
    options.max_running_jobs = most;
    FakeEngine fake(options);
    std::atomic<int64_t> seen{0};
    fake.model.on_unit = [&](const Unit&, int64_t) {
      seen = std::max<int64_t>(seen, fake.engine->running_jobs());
    };
    StartBlocked(fake, "first", 8);
    for (int i = 0; i < 6; ++i) fake.Submit("same");
    fake.model.steps.Open();
    ASSERT_TRUE(fake.WaitIdle()) << most;
    EXPECT_EQ(fake.observer.finished[JobState::kSucceeded], 7);
    EXPECT_LE(seen, most);
  }
}

TEST(EngineMany, AJobThatDoesNotFitBesideOthersWaitsForThemAndSucceeds) {
  EngineOptions options;
  options.max_memory = std::to_string(ResidentBytes() + (int64_t{1} << 30)) + "B";
  FakeEngine fake(options);
  fake.model.estimate.held_bytes = int64_t{300} << 20;
  fake.model.estimate.peak_bytes = int64_t{700} << 20;
  StartBlocked(fake, "first", 8);
  for (int i = 0; i < 4; ++i) fake.Submit("large");
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.finished[JobState::kSucceeded], 5);
}

TEST(EngineMany, AnUrgentJobOvertakesALongOneAtTheNextStep) {
  FakeEngine fake;
  StartBlocked(fake, "long", 200);
  fake.Submit("urgent", [](GenerationRequest& r) {
    r.width = 128;
    r.priority = Priority::kUrgent;
  });
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_LT(LastForwardOf(fake.model, "urgent"), 10);
  EXPECT_GE(fake.observer.preemptions, 1);
}

TEST(EngineMany, FirstComeFirstServedOvertakesNobody) {
  EngineOptions options;
  options.policy = EngineOptions::Policy::kFifo;
  FakeEngine fake(options);
  StartBlocked(fake, "long", 50);
  fake.Submit("urgent", [](GenerationRequest& r) {
    r.width = 128;
    r.priority = Priority::kUrgent;
  });
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_GT(LastForwardOf(fake.model, "urgent"), LastForwardOf(fake.model, "long"));
}

TEST(EngineMany, WhatFailsForSeveralIsTriedByEachAlone) {
  FakeEngine fake;
  std::atomic<int> failed{0};
  fake.model.on_unit = [&](const Unit& unit, int64_t rows) {
    if (unit.kind != UnitKind::kStep || rows <= 2) return;
    ++failed;
    throw std::bad_alloc();
  };
  const std::string one = StartBlocked(fake, "one", 20);
  const std::string two =
      fake.Submit("two", [](GenerationRequest& r) { r.num_inference_steps = 20; });
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(one).state, JobState::kSucceeded);
  EXPECT_EQ(fake.AwaitEnd(two).state, JobState::kSucceeded);
  EXPECT_GE(failed, 1) << "they were never together";
}

TEST(EngineMany, OneThatFailsInASharedStepFailsAlone) {
  FakeEngine fake;
  fake.model.on_step = [](const RunRequest& run, int64_t step) {
    if (run.prompt == "bad" && step == 8) throw Error(StatusCode::kInternal, "no", "", "BAD");
  };
  const std::string good = StartBlocked(fake, "good", 20);
  const std::string bad =
      fake.Submit("bad", [](GenerationRequest& r) { r.num_inference_steps = 20; });
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(bad).error->reason, "BAD");
  EXPECT_EQ(fake.AwaitEnd(good).state, JobState::kSucceeded);
}

TEST(EngineMany, ACancelledJobLeavesItsCompanionsAlone) {
  FakeEngine fake;
  const std::string stays = StartBlocked(fake, "stays", 30);
  const std::string goes =
      fake.Submit("goes", [](GenerationRequest& r) { r.num_inference_steps = 30; });
  fake.model.steps.Allow(4);
  fake.engine->Cancel(goes);
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(goes).state, JobState::kCancelled);
  EXPECT_EQ(fake.AwaitEnd(stays).state, JobState::kSucceeded);
}

TEST(EngineMany, ADeadlineThatCannotBeMetIsRefusedUnlessItIsToBeTried) {
  FakeEngine fake;
  fake.model.on_unit = [](const Unit&, int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  fake.AwaitEnd(fake.Submit("teaches how long a step takes"));
  GenerationRequest request = SmallRequest("too long");
  request.num_inference_steps = 1000;
  request.deadline = fake.clock.now() + std::chrono::seconds(1);
  const auto refused = fake.engine->Submit(request);
  ASSERT_TRUE(std::holds_alternative<Error>(refused));
  const Error& error = std::get<Error>(refused);
  EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(error.reason(), "DEADLINE_UNREACHABLE");
  EXPECT_THAT(error.what(), HasSubstr("its deadline is in 1.0 s"));
  request.best_effort_deadline = true;
  const auto tried = fake.engine->Submit(request);
  ASSERT_TRUE(std::holds_alternative<JobSnapshot>(tried));
  fake.engine->Cancel(std::get<JobSnapshot>(tried).id);
}

}  // namespace
}  // namespace denoised
