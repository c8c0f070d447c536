// The engine's queue: order, limits, cancels, deadlines, draining, the end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

EngineOptions QueueOf(int64_t jobs) {
  EngineOptions options;
  options.max_queued_jobs = jobs;
  return options;
}

void SetLate(FakeEngine& fake, GenerationRequest& request) {
  request.deadline = fake.clock.now() - std::chrono::milliseconds(1);
}

TEST(EngineQueue, JobsRunInTheOrderInWhichTheyCame) {
  FakeEngine fake;
  fake.StartBlocked("first");
  for (const char* prompt : {"second", "third", "fourth"}) fake.Submit(prompt);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.model.began(), ElementsAre("first", "second", "third", "fourth"));
}

TEST(EngineQueue, QueuePositionsCountFromTheRunningJobAndMoveUp) {
  EngineOptions options;
  options.policy = EngineOptions::Policy::kFifo;
  FakeEngine fake(options);
  const std::string first = fake.StartBlocked("first");
  const std::string second = fake.Submit("second");
  const std::string third = fake.Submit("third");
  EXPECT_EQ(fake.Get(first).queue_position, 0);
  EXPECT_EQ(fake.Get(second).queue_position, 1);
  EXPECT_EQ(fake.Get(third).queue_position, 2);
  EXPECT_EQ(fake.engine->queue_depth(), 2);
  EXPECT_EQ(fake.engine->running_jobs(), 1);
  EXPECT_EQ(fake.engine->Cancel(second), Engine::CancelResult::kCancelling);
  EXPECT_EQ(fake.Get(third).queue_position, 1);
}

TEST(EngineQueue, AFullQueueRefusesAndStoresNothing) {
  FakeEngine fake(QueueOf(2));
  fake.StartBlocked("running");
  fake.Submit("second");
  fake.Submit("third");
  const Error refusal = ErrorOf(fake.engine->Submit(SmallRequest("too many")));
  EXPECT_EQ(refusal.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal.reason(), "QUEUE_FULL");
  EXPECT_EQ(fake.engine->jobs().List(std::nullopt, 100, "").jobs.size(), 3u);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.model.began(), ElementsAre("running", "second", "third"));
}

TEST(EngineQueue, OfAHundredAtOnceExactlyTheCapacityIsAccepted) {
  FakeEngine fake(QueueOf(8));
  fake.StartBlocked("running");
  std::atomic<int> accepted{0}, refused{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&] {
      for (int i = 0; i < 25; ++i) {
        const auto result = fake.engine->Submit(SmallRequest("flood"));
        ++(std::holds_alternative<JobSnapshot>(result) ? accepted : refused);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(accepted, 8);
  EXPECT_EQ(refused, 92);
  EXPECT_EQ(fake.engine->jobs().List(std::nullopt, 1000, "").jobs.size(), 9u);
}

TEST(EngineQueue, ALateJobGivesItsPlaceToANewOne) {
  FakeEngine fake(QueueOf(1));
  fake.StartBlocked("running");
  const std::string late = fake.Submit("late", [&](GenerationRequest& r) {
    r.deadline = fake.clock.now() + std::chrono::milliseconds(5);
  });
  EXPECT_EQ(ErrorOf(fake.engine->Submit(SmallRequest("early"))).reason(), "QUEUE_FULL");
  fake.clock.Advance(std::chrono::milliseconds(5));
  fake.Submit("in its place");
  EXPECT_EQ(fake.AwaitEnd(late).error->code, StatusCode::kDeadlineExceeded);
}

TEST(EngineDeadline, WhatWaitsIsEndedInTimeAlsoWithinALongStep) {
  FakeEngine fake(QueueOf(2));
  const std::string running = fake.StartBlocked("running");
  const auto late = [&](GenerationRequest& r) {
    r.deadline = fake.clock.now() + std::chrono::seconds(5);
  };
  const std::string waiting = fake.Submit("waiting", late);
  const std::string aside = fake.Submit("aside", late);
  EXPECT_FALSE(fake.engine->Suspend(aside));
  fake.clock.Advance(std::chrono::seconds(5));
  for (const std::string& id : {waiting, aside}) {
    const JobSnapshot job = fake.AwaitEnd(id);
    EXPECT_EQ(job.error->code, StatusCode::kDeadlineExceeded);
    EXPECT_FALSE(job.started_at);
  }
  EXPECT_EQ(fake.engine->queue_depth(), 0) << "its place is free";
  EXPECT_EQ(fake.model.steps_run, 0) << "the step goes on";
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(running).state, JobState::kSucceeded);
}

TEST(EngineQueue, WhatIsAcceptedIsInTheStoreAtOnceWithEveryDefaultFilledIn) {
  FakeEngine fake;
  GenerationRequest request = SmallRequest("a prompt");
  request.seed.reset();
  request.width = 128;
  const JobSnapshot job = std::get<JobSnapshot>(fake.engine->Submit(request));
  EXPECT_EQ(job.id.size(), 32u);
  EXPECT_EQ(job.prompt, "a prompt");
  EXPECT_EQ(job.parameters.model, "fake");
  EXPECT_EQ(job.parameters.width, 128);
  EXPECT_EQ(job.parameters.height, 64);
  EXPECT_EQ(job.parameters.negative_prompt, "the model's own");
  EXPECT_EQ(job.num_steps, 3);
  EXPECT_GE(job.parameters.seed, 0);
  EXPECT_EQ(fake.Get(job.id).parameters.seed, job.parameters.seed);
}

TEST(EngineQueue, DrawnSeedsAndIdsDiffer) {
  FakeEngine fake;
  GenerationRequest request = SmallRequest("twice");
  request.seed.reset();
  const JobSnapshot one = std::get<JobSnapshot>(fake.engine->Submit(request));
  const JobSnapshot two = std::get<JobSnapshot>(fake.engine->Submit(request));
  EXPECT_NE(one.id, two.id);
  EXPECT_NE(one.parameters.seed, two.parameters.seed);
}

TEST(EngineQueue, BadRequestsAreRefusedByFieldAndStoreNothing) {
  FakeEngine fake;
  const auto refusal = [&](const std::function<void(GenerationRequest&)>& edit) {
    GenerationRequest request = SmallRequest("bad");
    edit(request);
    return ErrorOf(fake.engine->Submit(request));
  };
  EXPECT_EQ(refusal([](auto& r) { r.height = 63; }).field(), "height");
  EXPECT_EQ(refusal([](auto& r) { r.num_inference_steps = 0; }).field(), "num_inference_steps");
  EXPECT_EQ(refusal([](auto& r) {
              r.latents = HostTensor{DType::kFloat32, {2}, "1234"};
            }).field(),
            "latents.data");
  const Error unknown = refusal([](auto& r) { r.model = "absent"; });
  EXPECT_EQ(unknown.code(), StatusCode::kNotFound);
  EXPECT_EQ(unknown.field(), "model");
  EXPECT_THAT(unknown.what(), HasSubstr("fake"));
  EXPECT_THAT(fake.engine->jobs().List(std::nullopt, 10, "").jobs, IsEmpty());
}

TEST(EngineQueue, AJobThatEndedAndWasForgottenBeforeTheReplyIsStillAnswered) {
  EngineOptions options = QueueOf(1000);
  options.max_finished_jobs = 1;
  FakeEngine fake(options);
  for (int i = 0; i < 200; ++i) EXPECT_NE(fake.Submit("quick"), "");
}

TEST(EngineCancel, AQueuedJobEndsAtOnceAndNeverRuns) {
  FakeEngine fake;
  fake.StartBlocked("running");
  const std::string queued = fake.Submit("queued");
  EXPECT_EQ(fake.engine->Cancel(queued), Engine::CancelResult::kCancelling);
  const JobSnapshot job = fake.Get(queued);
  EXPECT_EQ(job.state, JobState::kCancelled);
  EXPECT_EQ(job.error->code, StatusCode::kCancelled);
  EXPECT_FALSE(job.started_at);
  EXPECT_EQ(fake.engine->Cancel(queued), Engine::CancelResult::kAlreadyFinished);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.model.began(), ElementsAre("running"));
}

TEST(EngineCancel, ARunningJobStopsWithinOneStep) {
  for (int64_t at = 1; at <= 3; ++at) {
    FakeEngine fake;
    const std::string id = fake.StartBlocked("running");
    fake.model.steps.Allow(at - 1);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(at));
    EXPECT_EQ(fake.engine->Cancel(id), Engine::CancelResult::kCancelling);
    EXPECT_EQ(fake.engine->Cancel(id), Engine::CancelResult::kCancelling);
    fake.model.steps.Open();
    const JobSnapshot job = fake.AwaitEnd(id);
    EXPECT_EQ(job.state, JobState::kCancelled);
    EXPECT_EQ(fake.model.steps_run, at);
    EXPECT_THAT(job.artifacts, IsEmpty());
  }
}

TEST(EngineCancel, StopsAJobBetweenChunksOfItsFrames) {
  FakeEngine fake;
  fake.model.finish.Close();
  const std::string id =
      fake.Submit("decoding", [](auto& r) { r.formats = {ArtifactFormat::kNpy}; });
  ASSERT_TRUE(fake.model.finish.AwaitArrival(1));
  EXPECT_EQ(fake.Get(id).stage, JobStage::kDecode);
  EXPECT_EQ(fake.engine->Cancel(id), Engine::CancelResult::kCancelling);
  fake.model.finish.Open();
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kCancelled);
  EXPECT_EQ(job.error->reason, "CANCELLED");
}

TEST(EngineCancel, FinishedAndUnknownJobsAreToldApart) {
  FakeEngine fake;
  const std::string id = fake.Submit("quick");
  fake.AwaitEnd(id);
  EXPECT_EQ(fake.engine->Cancel(id), Engine::CancelResult::kAlreadyFinished);
  EXPECT_EQ(fake.engine->Cancel("0123456789abcdef0123456789abcdef"),
            Engine::CancelResult::kNotFound);
}

TEST(EngineDeadline, AJobThatIsLateInTheQueueNeverStarts) {
  FakeEngine fake;
  const std::string running = fake.StartBlocked("running");
  const std::string late = fake.Submit(
      "late", [&](auto& r) { r.deadline = fake.clock.now() + std::chrono::seconds(1); });
  EXPECT_EQ(fake.Get(late).state, JobState::kQueued);
  fake.clock.Advance(std::chrono::seconds(1));
  const JobSnapshot job = fake.AwaitEnd(late);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->code, StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(job.started_at);
  EXPECT_EQ(fake.Get(running).state, JobState::kRunning);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.started, 1);
  EXPECT_THAT(fake.model.began(), ElementsAre("running"));
}

TEST(EngineDeadline, ALateJobAtTheHeadOfAnIdleEngineNeverStartsEither) {
  FakeEngine fake;
  const std::string late = fake.Submit("late", [&](auto& r) { SetLate(fake, r); });
  const JobSnapshot job = fake.AwaitEnd(late);
  EXPECT_EQ(job.error->code, StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(job.started_at);
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.started, 0);
  EXPECT_THAT(fake.model.began(), IsEmpty());
}

TEST(EngineDeadline, StopsARunningJobWithinOneStep) {
  FakeEngine fake;
  fake.model.steps.Close();
  const std::string id = fake.Submit(
      "slow", [&](auto& r) { r.deadline = fake.clock.now() + std::chrono::seconds(1); });
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.clock.Advance(std::chrono::seconds(1));
  fake.model.steps.Open();
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->code, StatusCode::kDeadlineExceeded);
  EXPECT_EQ(job.error->reason, "DEADLINE_EXCEEDED");
  EXPECT_EQ(fake.model.steps_run, 1);
}

TEST(EngineDeadline, PassingWhileTheFramesAreDecodedIsNotCalledACancel) {
  FakeEngine fake;
  fake.model.finish.Close();
  const std::string id = fake.Submit("decoding", [&](auto& r) {
    r.formats = {ArtifactFormat::kNpy};
    r.deadline = fake.clock.now() + std::chrono::seconds(1);
  });
  ASSERT_TRUE(fake.model.finish.AwaitArrival(1));
  fake.clock.Advance(std::chrono::seconds(1));
  fake.model.finish.Open();
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->code, StatusCode::kDeadlineExceeded);
}

TEST(EngineDeadline, AJobThatIsDoneInTimeSucceeds) {
  FakeEngine fake;
  const std::string id = fake.Submit(
      "in time", [&](auto& r) { r.deadline = fake.clock.now() + std::chrono::seconds(1); });
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
}

TEST(EngineDrain, RefusesNewWorkAndFinishesTheOld) {
  FakeEngine fake;
  const std::string running = fake.StartBlocked("running");
  const std::string queued = fake.Submit("queued");
  fake.engine->Drain();
  fake.engine->Drain();
  EXPECT_TRUE(fake.engine->draining());
  const Error refusal = ErrorOf(fake.engine->Submit(SmallRequest("new")));
  EXPECT_EQ(refusal.code(), StatusCode::kUnavailable);
  EXPECT_EQ(refusal.reason(), "DRAINING");
  EXPECT_FALSE(fake.engine->WaitIdle(std::chrono::milliseconds(0)));
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.Get(running).state, JobState::kSucceeded);
  EXPECT_EQ(fake.Get(queued).state, JobState::kSucceeded);
}

TEST(EngineDrain, AnIdleEngineIsIdleAtOnce) {
  FakeEngine fake;
  EXPECT_TRUE(fake.engine->WaitIdle(kPatience));
  fake.engine->Drain();
  EXPECT_TRUE(fake.engine->WaitIdle(std::chrono::milliseconds(0)));
}

TEST(EngineShutdown, CancelsWhatRunsAndWhatWaits) {
  FakeEngine fake;
  const std::string running = fake.StartBlocked("running");
  const std::string queued = fake.Submit("queued");
  std::thread shutdown([&] { fake.engine->Shutdown(); });
  // The flag is up once new work is refused; only then may the step end.
  while (!fake.engine->draining()) std::this_thread::yield();
  fake.model.steps.Open();
  shutdown.join();
  EXPECT_EQ(fake.Get(running).state, JobState::kCancelled);
  EXPECT_EQ(fake.Get(queued).state, JobState::kCancelled);
  EXPECT_EQ(fake.model.steps_run, 1);
  EXPECT_EQ(fake.model.live_runs, 0);
  EXPECT_EQ(fake.engine->queue_depth(), 0);
  EXPECT_EQ(ErrorOf(fake.engine->Submit(SmallRequest("new"))).code(), StatusCode::kUnavailable);
}

TEST(EngineShutdown, MayBeCalledTwiceAndFromTwoThreads) {
  FakeEngine fake;
  fake.Submit("a job");
  std::thread other([&] { fake.engine->Shutdown(); });
  fake.engine->Shutdown();
  other.join();
  fake.engine->Shutdown();
  EXPECT_TRUE(fake.engine->WaitIdle(std::chrono::milliseconds(0)));
}

}  // namespace
}  // namespace denoised
