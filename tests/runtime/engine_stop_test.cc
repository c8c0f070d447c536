// Cancels, deadlines and the engine's end inside a step: the step is left at its next stop point.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/stop_point.h"
#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::IsEmpty;

// A step that never ends by itself, as one block of a long video would seem not to.
void RunUntilStopped() {
  for (;;) StopPoint();
}

// An engine whose second step is one that only a stop ends; `inside` is set once it runs.
struct LongStep {
  LongStep() {
    fake.model.on_step = [this](const RunRequest&, int64_t step) {
      if (step != 1) return;
      inside.Set(true);
      RunUntilStopped();
    };
    id = fake.Submit("long");
  }
  FakeEngine fake;
  Promised<bool> inside;
  std::string id;
};

TEST(EngineStop, ACancelLeavesARunningStep) {
  LongStep test;
  ASSERT_TRUE(test.inside.Await());
  EXPECT_EQ(test.fake.engine->Cancel(test.id), Engine::CancelResult::kCancelling);
  const JobSnapshot job = test.fake.AwaitEnd(test.id);
  EXPECT_EQ(job.state, JobState::kCancelled);
  EXPECT_EQ(job.error->reason, "CANCELLED");
  EXPECT_EQ(job.step, 1) << "a step that was left is not a step that ran";
  EXPECT_THAT(job.artifacts, IsEmpty());
  EXPECT_EQ(test.fake.model.live_runs, 0) << "nothing of it is kept";
}

TEST(EngineStop, AJobAfterOneThatWasStoppedRunsAsIfItWereAlone) {
  LongStep test;
  ASSERT_TRUE(test.inside.Await());
  test.fake.engine->Cancel(test.id);
  test.fake.AwaitEnd(test.id);
  test.fake.model.on_step = {};
  EXPECT_EQ(test.fake.AwaitEnd(test.fake.Submit("next")).state, JobState::kSucceeded);
}

TEST(EngineStop, ADeadlineLeavesARunningStep) {
  FakeEngine fake;
  Promised<bool> inside;
  fake.model.on_step = [&](const RunRequest&, int64_t) {
    inside.Set(true);
    RunUntilStopped();
  };
  const std::string id = fake.Submit("late", [&](GenerationRequest& request) {
    request.deadline = fake.clock.now() + std::chrono::seconds(5);
  });
  ASSERT_TRUE(inside.Await());
  fake.clock.Advance(std::chrono::seconds(6));
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->code, StatusCode::kDeadlineExceeded);
  EXPECT_EQ(job.step, 0);
}

TEST(EngineStop, ACancelLeavesADecode) {
  FakeEngine fake;
  Promised<bool> inside;
  fake.model.on_finish = [&](const RunRequest&) {
    inside.Set(true);
    RunUntilStopped();
  };
  const std::string id =
      fake.Submit("decoded", [](auto& request) { request.formats = {ArtifactFormat::kNpy}; });
  ASSERT_TRUE(inside.Await());
  fake.engine->Cancel(id);
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kCancelled);
  EXPECT_EQ(job.stage, JobStage::kDecode);
}

TEST(EngineStop, TheEnginesEndLeavesARunningStepAndCancelsItsJobAndThoseThatWait) {
  LongStep test;
  const std::string waiting = test.fake.Submit("waiting");
  ASSERT_TRUE(test.inside.Await());
  test.fake.engine->Shutdown();
  EXPECT_EQ(test.fake.Get(test.id).state, JobState::kCancelled);
  EXPECT_EQ(test.fake.Get(waiting).state, JobState::kCancelled);
}

// ---- Denoise calls -----------------------------------------------------------------------------

// A Denoise call that only a stop ends.
struct LongCall {
  explicit LongCall(std::optional<std::chrono::seconds> time = {}) {
    fake.model.on_denoise = [this] {
      inside.Set(true);
      RunUntilStopped();
    };
    DenoiseRequest request;
    request.latents = {DType::kFloat32, {1}, std::string(4, '\0')};
    if (time) request.deadline = fake.clock.now() + *time;
    fake.engine->Denoise(request, cancel, [this](auto result) { outcome.Set(std::move(result)); });
  }
  Error error() { return std::get<Error>(outcome.value()); }

  FakeEngine fake;
  const std::shared_ptr<CancelToken> cancel = std::make_shared<CancelToken>();
  Promised<bool> inside;
  Promised<Engine::DenoiseOutcome> outcome;
};

TEST(EngineStop, ACancelLeavesARunningDenoiseCall) {
  LongCall call;
  ASSERT_TRUE(call.inside.Await());
  call.cancel->cancelled = true;
  ASSERT_TRUE(call.outcome.Await());
  EXPECT_EQ(call.error().code(), StatusCode::kCancelled);
}

TEST(EngineStop, ADeadlineLeavesARunningDenoiseCall) {
  LongCall call(std::chrono::seconds(5));
  ASSERT_TRUE(call.inside.Await());
  call.fake.clock.Advance(std::chrono::seconds(6));
  ASSERT_TRUE(call.outcome.Await());
  EXPECT_EQ(call.error().code(), StatusCode::kDeadlineExceeded);
}

TEST(EngineStop, TheEnginesEndLeavesARunningDenoiseCall) {
  LongCall call;
  ASSERT_TRUE(call.inside.Await());
  call.fake.engine->Shutdown();
  ASSERT_TRUE(call.outcome.Await());
  EXPECT_EQ(call.error().code(), StatusCode::kUnavailable);
  EXPECT_EQ(call.error().reason(), "DRAINING");
}

}  // namespace
}  // namespace denoised
