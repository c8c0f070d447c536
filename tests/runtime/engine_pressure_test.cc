// An engine whose memory is short of what nobody planned: no new work, and what runs goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;
const ArtifactInfo kVideo = {ArtifactFormat::kMp4, "video.mp4", 0, "digest"};

// An engine with a room of 1,000 MiB, of which as much is taken as a test says.
struct Pressed {
  Pressed() : fake(Options()) {}

  EngineOptions Options() {
    EngineOptions options;
    options.max_memory = std::to_string(ResidentBytes() + 1000 * kMiB) + "B";
    options.unreclaimable_bytes = [this] {
      ++reads;
      return grown.load();
    };
    return options;
  }
  bool Await(MemoryStep step) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (fake.engine->Pressure().step != step) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }
  // Until a step would have been taken; a look may read twice.
  void AwaitLooks() {
    const int64_t enough = reads + 2 * (MemoryLadder::kLooks + 1);
    while (reads < enough) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

  std::atomic<int64_t> grown{0}, reads{0};
  FakeEngine fake;
};

TEST(EnginePressure, NewWorkIsRefusedWithBothNumbersAndATimeAndIsTakenAgainLater) {
  Pressed pressed;
  FakeEngine& fake = pressed.fake;
  const std::string running = fake.StartBlocked("runs");
  pressed.grown = 870 * kMiB;
  ASSERT_TRUE(pressed.Await(MemoryStep::kNoNewWork));

  const Error refusal = ErrorOf(fake.engine->Submit(SmallRequest("too many")));
  EXPECT_EQ(refusal.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal.reason(), "MEMORY");
  EXPECT_THAT(refusal.what(),
              AllOf(HasSubstr("take 870 MiB of the "), HasSubstr(" MiB that are left to them")));
  EXPECT_GT(refusal.retry_after(), std::chrono::seconds(0));
  EXPECT_EQ(fake.engine->jobs().List({}, 10, "").jobs.size(), 1u) << "nothing is stored";
  Promised<Engine::DenoiseOutcome> call;
  DenoiseRequest request;
  request.latents = {DType::kUInt8, {4}, "abcd"};
  fake.engine->Denoise(request, nullptr, [&](auto result) { call.Set(std::move(result)); });
  ASSERT_TRUE(call.Await());
  EXPECT_EQ(std::get<Error>(call.value()).reason(), "MEMORY");
  Promised<SessionReply> opened;
  SessionRequest session;
  session.generation = SmallRequest("a session");
  session.generation.formats.clear();
  fake.engine->OpenSession(std::make_shared<SessionOwner>(), session,
                           [&](SessionReply reply) { opened.Set(std::move(reply)); });
  ASSERT_TRUE(opened.Await());
  ASSERT_TRUE(opened.value().error);
  EXPECT_EQ(opened.value().error->reason(), "MEMORY") << opened.value().error->what();
  EXPECT_EQ(fake.engine->Pressure().refused_works, 3);

  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(running).state, JobState::kSucceeded) << "what was taken goes on";
  pressed.grown = 700 * kMiB;
  ASSERT_TRUE(pressed.Await(MemoryStep::kNone));
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("again")).state, JobState::kSucceeded);
}

TEST(EnginePressure, AnAnswerToARetryIsNoNewWork) {
  Pressed pressed;
  GenerationRequest request = SmallRequest("once");
  request.idempotency_key = "key";
  const auto first = pressed.fake.engine->Submit(request);
  pressed.grown = 870 * kMiB;
  ASSERT_TRUE(pressed.Await(MemoryStep::kNoNewWork));
  const auto again = pressed.fake.engine->Submit(request);
  ASSERT_TRUE(std::holds_alternative<JobSnapshot>(again));
  EXPECT_EQ(std::get<JobSnapshot>(again).id, std::get<JobSnapshot>(first).id);
}

TEST(EnginePressure, AJobThatTakesWhatItWasPromisedRefusesNobody) {
  Pressed pressed;
  FakeEngine& fake = pressed.fake;
  fake.model.estimate.held_bytes = 100 * kMiB;
  fake.model.estimate.peak_bytes = 950 * kMiB;
  fake.StartBlocked("large");
  pressed.grown = 950 * kMiB;
  pressed.AwaitLooks();
  EXPECT_EQ(fake.engine->Pressure().step, MemoryStep::kNone);
  fake.Submit("another");
  fake.model.steps.Open();
  pressed.grown = 0;
  EXPECT_TRUE(fake.WaitIdle());
}

TEST(EnginePressure, ResultsThatMayBeForgottenGoBeforeAnybodyIsRefused) {
  Pressed pressed;
  FakeEngine& fake = pressed.fake;
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) {
    ids.push_back(fake.Submit("with a result"));
    fake.AwaitEnd(ids.back());
    fake.engine->jobs().PutArtifact(ids.back(), kVideo, std::string(20 * kMiB, 'x'));
  }
  pressed.grown = 870 * kMiB;  // whoever takes them
  ASSERT_TRUE(pressed.Await(MemoryStep::kNoNewWork));
  EXPECT_FALSE(fake.engine->jobs().Get(ids.front()));
  EXPECT_TRUE(fake.engine->jobs().Get(ids.back())) << "the newest stays";
}

TEST(EnginePressure, WithoutALimitNothingPresses) {
  Pressed pressed;
  EngineOptions options = pressed.Options();
  options.max_memory = "none";
  FakeEngine fake(options);
  pressed.grown = int64_t{1} << 50;
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // nothing is read: nothing to await
  EXPECT_EQ(fake.engine->Pressure().step, MemoryStep::kNone);
  EXPECT_EQ(fake.engine->Pressure().fraction, 0);
}

}  // namespace
}  // namespace denoised
