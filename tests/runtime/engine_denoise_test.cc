// Single denoising steps: between the steps of jobs, each answered exactly once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

using Answer = std::shared_ptr<Promised<Engine::DenoiseOutcome>>;

DenoiseRequest SmallStep(const std::string& bytes = "abcd") {
  DenoiseRequest request;
  request.latents = {DType::kFloat32, {1}, bytes};
  return request;
}

Answer Call(FakeEngine& fake, DenoiseRequest request = SmallStep(),
            std::shared_ptr<CancelToken> cancel = nullptr) {
  auto answer = std::make_shared<Promised<Engine::DenoiseOutcome>>();
  fake.engine->Denoise(std::move(request), std::move(cancel),
                       [answer](Engine::DenoiseOutcome outcome) { answer->Set(outcome); });
  return answer;
}

Error ErrorOf(const Answer& answer) {
  EXPECT_TRUE(answer->Await());
  const auto outcome = answer->value();
  if (const auto* error = std::get_if<Error>(&outcome)) return *error;
  ADD_FAILURE() << "was served";
  return Error(StatusCode::kOk, "");
}

TEST(EngineDenoise, ACallIsServedWithItsReceipt) {
  FakeEngine fake;
  const Answer answer = Call(fake, SmallStep("wxyz"));
  ASSERT_TRUE(answer->Await());
  const auto result = std::get<DenoiseResult>(answer->value());
  EXPECT_EQ(result.tensor.data, "wxyz");
  EXPECT_GE(result.queue_seconds, 0);
  ASSERT_THAT(result.receipt.entries, SizeIs(2));
  EXPECT_EQ(result.receipt.entries[0].ran, AttnBackend::kTorchSdpa);
  EXPECT_EQ(result.receipt.weights_digest, "digest of fake");
  EXPECT_EQ(result.receipt.model_digest, "model digest of fake");
  EXPECT_THAT(result.receipt.fingerprint, SizeIs(64));
  EXPECT_EQ(answer->times(), 1u);
}

TEST(EngineDenoise, CallsRunBetweenTheStepsOfARunningJob) {
  // Units take no time, so that nobody gets ahead of the others.
  FakeEngine fake({}, true, 2, [](FakeModel* model) {
    model->unit_clock = [] { return std::chrono::steady_clock::time_point(); };
  });
  fake.model.steps.Close();
  const std::string id = fake.Submit("a job");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const Answer one = Call(fake), two = Call(fake);
  EXPECT_EQ(one->times(), 0u);
  fake.model.steps.Allow(1);
  ASSERT_TRUE(one->Await());
  ASSERT_TRUE(two->Await());
  EXPECT_EQ(fake.model.steps_run, 1) << "before the job's next step";
  EXPECT_EQ(fake.Get(id).state, JobState::kRunning);
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
}

// A client that calls again from its own answer would else hold the engine for ever.
TEST(EngineDenoise, AStreamOfCallsStarvesNoJob) {
  FakeEngine fake;
  std::atomic<bool> stop{false};
  std::atomic<int64_t> calls{0};
  Promised<bool> ended;
  std::function<void(Engine::DenoiseOutcome)> again = [&](Engine::DenoiseOutcome) {
    ++calls;
    if (stop) return ended.Set(true);
    fake.engine->Denoise(SmallStep(), nullptr, again);
  };
  fake.engine->Denoise(SmallStep(), nullptr, again);
  const std::string id = fake.Submit("a patient job");
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
  stop = true;
  ASSERT_TRUE(ended.Await());
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_GE(calls, 3);
}

TEST(EngineDenoise, ACancelledCallNeverRuns) {
  FakeEngine fake;
  fake.model.denoise.Close();
  const Answer blocker = Call(fake);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  auto cancel = std::make_shared<CancelToken>();
  const Answer answer = Call(fake, SmallStep(), cancel);
  cancel->cancelled = true;
  fake.model.denoise.Open();
  EXPECT_EQ(ErrorOf(answer).code(), StatusCode::kCancelled);
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.model.denoise_calls, 1);
  EXPECT_EQ(answer->times(), 1u);
}

TEST(EngineDenoise, ALateCallNeverRuns) {
  FakeEngine fake;
  fake.model.denoise.Close();
  const Answer blocker = Call(fake);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  DenoiseRequest request = SmallStep();
  request.deadline = fake.clock.now() + std::chrono::seconds(1);
  const Answer late = Call(fake, request);
  request.deadline = fake.clock.now() + std::chrono::seconds(2);
  const Answer in_time = Call(fake, request);
  fake.clock.Advance(std::chrono::seconds(1));
  fake.model.denoise.Open();
  EXPECT_EQ(ErrorOf(late).code(), StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(in_time->Await());
  EXPECT_TRUE(std::holds_alternative<DenoiseResult>(in_time->value()));
  EXPECT_EQ(fake.model.denoise_calls, 2);
}

TEST(EngineDenoise, BadCallsAreAnsweredAtOnceOnTheCallersThread) {
  FakeEngine fake;
  DenoiseRequest request = SmallStep("too many bytes");
  const Answer bad = Call(fake, request);
  ASSERT_EQ(bad->times(), 1u);
  EXPECT_EQ(ErrorOf(bad).field(), "latents.data");
  request = SmallStep();
  request.model = "absent";
  EXPECT_EQ(ErrorOf(Call(fake, request)).code(), StatusCode::kNotFound);
}

TEST(EngineDenoise, AStrictCallThatCannotBeServedFailsAlone) {
  FakeEngine fake;
  DenoiseRequest request = SmallStep();
  request.attention = {AttnBackend::kFlashAttn, SelectionMode::kStrict, "", {}};
  const Error error = ErrorOf(Call(fake, request));
  EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(error.what(), HasSubstr("head sizes up to 64"));
  const Answer next = Call(fake);
  ASSERT_TRUE(next->Await());
  EXPECT_TRUE(std::holds_alternative<DenoiseResult>(next->value()));
}

TEST(EngineDenoise, TooManyWaitingCallsAreRefused) {
  EngineOptions options;
  options.max_queued_denoise_calls = 2;
  FakeEngine fake(options);
  fake.model.denoise.Close();
  const Answer running = Call(fake);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  const Answer one = Call(fake), two = Call(fake), three = Call(fake);
  ASSERT_EQ(three->times(), 1u);
  EXPECT_EQ(ErrorOf(three).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorOf(three).reason(), "QUEUE_FULL");
  fake.model.denoise.Open();
  ASSERT_TRUE(one->Await() && two->Await());
  EXPECT_TRUE(std::holds_alternative<DenoiseResult>(two->value()));
}

TEST(EngineDenoise, AWaitingCallIsWorkForWaitIdle) {
  FakeEngine fake;
  fake.model.denoise.Close();
  const Answer answer = Call(fake);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  EXPECT_FALSE(fake.engine->WaitIdle(std::chrono::milliseconds(0)));
  fake.model.denoise.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(answer->times(), 1u) << "answered before it counts as idle";
}

TEST(EngineDenoise, DrainRefusesNewCallsAndServesTheOld) {
  FakeEngine fake;
  fake.model.denoise.Close();
  const Answer running = Call(fake);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  const Answer waiting = Call(fake);
  fake.engine->Drain();
  EXPECT_EQ(ErrorOf(Call(fake)).reason(), "DRAINING");
  fake.model.denoise.Open();
  ASSERT_TRUE(waiting->Await());
  EXPECT_TRUE(std::holds_alternative<DenoiseResult>(waiting->value()));
}

TEST(EngineDenoise, ShutdownAnswersEveryWaitingCallOnce) {
  FakeEngine fake;
  fake.model.denoise.Close();
  const Answer running = Call(fake);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  std::vector<Answer> waiting;
  for (int i = 0; i < 5; ++i) waiting.push_back(Call(fake));
  std::thread shutdown([&] { fake.engine->Shutdown(); });
  while (!fake.engine->draining()) std::this_thread::yield();
  fake.model.denoise.Open();
  shutdown.join();
  EXPECT_TRUE(std::holds_alternative<DenoiseResult>(running->value()));
  for (const Answer& answer : waiting) {
    ASSERT_EQ(answer->times(), 1u);
    EXPECT_EQ(ErrorOf(answer).code(), StatusCode::kUnavailable);
  }
  EXPECT_EQ(fake.model.denoise_calls, 1);
  EXPECT_EQ(ErrorOf(Call(fake)).reason(), "DRAINING");
}

}  // namespace
}  // namespace denoised
