// Admission by memory: what does not fit beside what the process holds is refused with both
// numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;
const ArtifactInfo kVideo = {ArtifactFormat::kMp4, "video.mp4", 0, "digest"};

// An engine that may take `room` more than this process holds now.
EngineOptions WithRoom(int64_t room) {
  EngineOptions options;
  options.max_memory = std::to_string(ResidentBytes() + room) + "B";
  return options;
}

// ThreadSanitizer's shadow of what is written is resident, and so the engine's: several bytes a
// byte.
bool WhatIsWrittenTakesMore() {
#if defined(__SANITIZE_THREAD__)
  return true;
#else
  return false;
#endif
}

Engine::SubmitResult TrySubmit(FakeEngine& fake, int64_t peak) {
  fake.model.estimate.peak_bytes = peak;
  return fake.engine->Submit(SmallRequest("sized"));
}

bool Fits(FakeEngine& fake, int64_t peak) {
  const auto result = TrySubmit(fake, peak);
  if (const auto* job = std::get_if<JobSnapshot>(&result)) {
    fake.AwaitEnd(job->id);
    return true;
  }
  EXPECT_EQ(std::get<Error>(result).reason(), "MEMORY");
  return false;
}

Promised<Engine::DenoiseOutcome>& Call(FakeEngine& fake, Promised<Engine::DenoiseOutcome>& outcome,
                                       size_t bytes = 4) {
  DenoiseRequest request;
  request.latents = {DType::kUInt8, {static_cast<int64_t>(bytes)}, std::string(bytes, '\0')};
  fake.engine->Denoise(request, nullptr,
                       [&outcome](auto result) { outcome.Set(std::move(result)); });
  return outcome;
}

TEST(EngineMemory, AJobThatDoesNotFitIsRefusedWithBothNumbersAndLeavesNothing) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  const auto result = TrySubmit(fake, 5 * 1024 * kMiB);
  const Error& error = std::get<Error>(result);
  EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(error.reason(), "MEMORY");
  EXPECT_THAT(error.what(), HasSubstr("64x64 pixels and 5 frames needs 5."));
  EXPECT_THAT(error.what(), HasSubstr("(5.00 GiB beside the "));
  EXPECT_THAT(error.what(), HasSubstr("and there are 1."));
  EXPECT_THAT(error.what(), HasSubstr("--max_memory"));
  EXPECT_TRUE(fake.engine->jobs().List({}, 10, "").jobs.empty());
}

TEST(EngineMemory, WhatFitsIsTaken) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  EXPECT_TRUE(Fits(fake, 900 * kMiB));
  EXPECT_FALSE(Fits(fake, 1200 * kMiB));
  EXPECT_TRUE(Fits(fake, 900 * kMiB)) << "as before";
}

TEST(EngineMemory, AJobRunsAsItsEstimateWasMade) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  fake.model.estimate.decode_bands = 5;
  fake.model.estimate.releases_text_encoder = true;
  std::atomic<int64_t> bands = 0;
  std::atomic<bool> releases = false;
  fake.model.on_begin = [&](const RunRequest& request) {
    bands = request.decode_bands;
    releases = request.release_text_encoder;
  };
  EXPECT_TRUE(Fits(fake, 100 * kMiB));
  EXPECT_EQ(bands, 5);
  EXPECT_TRUE(releases);
}

TEST(EngineMemory, WhatAModelHasMadeSinceLoadingCounts) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  EXPECT_TRUE(Fits(fake, 900 * kMiB));
  fake.model.made_bytes = 400 * kMiB;
  EXPECT_FALSE(Fits(fake, 900 * kMiB));
  EXPECT_TRUE(Fits(fake, 500 * kMiB));
}

TEST(EngineMemory, NoneIsNoLimit) {
  EngineOptions options;
  options.max_memory = "none";
  FakeEngine fake(options);
  EXPECT_TRUE(Fits(fake, int64_t{1} << 50));
}

TEST(EngineMemory, AutoKnowsThisMachine) {
  FakeEngine fake;
  EXPECT_TRUE(Fits(fake, kMiB));
  EXPECT_FALSE(Fits(fake, *MachineMemory()));
}

TEST(EngineMemory, ResultsThatAreKeptCount) {
  if (WhatIsWrittenTakesMore()) GTEST_SKIP() << "under ThreadSanitizer";
  FakeEngine fake(WithRoom(1024 * kMiB));
  const std::string id = fake.Submit("with a result");
  fake.engine->jobs().PutArtifact(id, kVideo, std::string(300 * kMiB, 'x'));
  EXPECT_FALSE(Fits(fake, 800 * kMiB));
  EXPECT_TRUE(Fits(fake, 600 * kMiB));
}

// A job that has ended and whose result has `bytes`.
std::string EndedWith(FakeEngine& fake, size_t bytes) {
  const std::string id = fake.Submit("with a result");
  fake.AwaitEnd(id);
  fake.engine->jobs().PutArtifact(id, kVideo, std::string(bytes, 'x'));
  return id;
}

TEST(EngineMemory, OldResultsMakeWayForWorkFetchedOnesFirst) {
  if (WhatIsWrittenTakesMore()) GTEST_SKIP() << "under ThreadSanitizer";
  FakeEngine fake(WithRoom(1024 * kMiB));
  const std::string older = EndedWith(fake, 200 * kMiB), fetched = EndedWith(fake, 200 * kMiB);
  const std::string newest = EndedWith(fake, 200 * kMiB);
  fake.engine->jobs().MarkFetched(fetched);
  EXPECT_TRUE(Fits(fake, 550 * kMiB));
  EXPECT_FALSE(fake.engine->jobs().Get(fetched)) << "has what it made";
  EXPECT_TRUE(fake.engine->jobs().Get(older)) << "needs not go";
  EXPECT_TRUE(Fits(fake, 980 * kMiB)) << "the newest by now is small";
  EXPECT_FALSE(fake.engine->jobs().Get(older) || fake.engine->jobs().Get(newest));
}

TEST(EngineMemory, AResultThatIsReadMakesNoWay) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  const std::string id = EndedWith(fake, 300 * kMiB);
  EndedWith(fake, 1);
  const auto held = fake.engine->jobs().GetArtifact(id, ArtifactFormat::kMp4);
  EXPECT_FALSE(Fits(fake, 800 * kMiB));
  EXPECT_TRUE(fake.engine->jobs().Get(id));
}

// Both were let into one turn by what they seemed to need when they came.
TEST(EngineMemory, JobsThatBeginTogetherAndHaveGrownSinceWaitForOneAnother) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  fake.model.estimate.peak_bytes = fake.model.estimate.held_bytes = 100 * kMiB;
  // A forward takes a while, whatever its rows: so the engine learns to share them.
  fake.model.on_unit = [](const Unit&, int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  };
  for (const char* prompt : {"w", "x", "y"}) {
    fake.Submit(prompt, [](GenerationRequest& r) { r.num_inference_steps = 40; });
  }
  ASSERT_TRUE(fake.WaitIdle());
  fake.model.denoise.Close();
  Promised<Engine::DenoiseOutcome> call;
  Call(fake, call);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  const std::string a = fake.Submit("a"), b = fake.Submit("b");
  fake.model.estimate.peak_bytes = fake.model.estimate.held_bytes = 950 * kMiB;
  fake.model.denoise.Open();
  ASSERT_TRUE(call.Await());
  EXPECT_EQ(fake.AwaitEnd(a).state, JobState::kSucceeded);
  EXPECT_EQ(fake.AwaitEnd(b).state, JobState::kSucceeded);
}

TEST(EngineMemory, ADenoiseCallRunsBesideWhatARunningJobHolds) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  Promised<Engine::DenoiseOutcome> alone, beside;
  fake.model.estimate.peak_bytes = 700 * kMiB;
  fake.model.estimate.held_bytes = 500 * kMiB;
  ASSERT_TRUE(Call(fake, alone).Await());
  EXPECT_TRUE(std::holds_alternative<DenoiseResult>(alone.value()));
  fake.model.steps.Close();
  const std::string job = fake.Submit("runs");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  ASSERT_TRUE(Call(fake, beside).Await());
  ASSERT_TRUE(std::holds_alternative<Error>(beside.value()));
  EXPECT_EQ(std::get<Error>(beside.value()).reason(), "MEMORY");
  EXPECT_THAT(std::get<Error>(beside.value()).what(), HasSubstr("a step of latents [4]"));
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(job).state, JobState::kSucceeded);
}

TEST(EngineMemory, RequestsThatWaitCount) {
  if (WhatIsWrittenTakesMore()) GTEST_SKIP() << "under ThreadSanitizer";
  FakeEngine fake(WithRoom(1024 * kMiB));
  fake.model.denoise.Close();
  Promised<Engine::DenoiseOutcome> first, second, third;
  fake.model.estimate.peak_bytes = 500 * kMiB;
  Call(fake, first);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  Call(fake, second, 400 * kMiB);
  EXPECT_EQ(second.times(), 0u) << "it waits";
  ASSERT_TRUE(Call(fake, third, 200 * kMiB).Await());
  ASSERT_TRUE(std::holds_alternative<Error>(third.value()));
  fake.model.denoise.Open();
  ASSERT_TRUE(second.Await());
  EXPECT_TRUE(std::holds_alternative<DenoiseResult>(second.value()));
}

TEST(EngineMemory, AJobThatNoLongerFitsWhenItsTurnComesFailsAlone) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  fake.model.steps.Close();
  fake.model.estimate.peak_bytes = 900 * kMiB;
  const std::string first = fake.Submit("first");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const std::string second = fake.Submit("second");  // which cannot begin before the first one
  fake.engine->jobs().PutArtifact(first, kVideo, std::string(300 * kMiB, 'x'));
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(first).state, JobState::kSucceeded);
  const JobSnapshot job = fake.AwaitEnd(second);
  ASSERT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->reason, "MEMORY");
}

TEST(EngineMemory, AWrongLimitIsRefusedBeforeAnythingElse) {
  EngineOptions options;
  options.max_memory = "lots";
  EXPECT_THROW(FakeEngine{options}, Error);
}

TEST(EngineTime, TheFirstStepsSpeedTellsALaterJobsTime) {
  FakeEngine fake;
  const auto eta_before_a_step = [&](const std::string& id) {
    for (const JobSnapshot& job : fake.store->History(id)) {
      if (job.stage == JobStage::kDenoise && job.step == 0 && job.eta_seconds) return true;
    }
    return false;
  };
  const std::string first = fake.Submit("first");
  fake.AwaitEnd(first);
  EXPECT_FALSE(eta_before_a_step(first)) << "nothing was measured yet";
  const std::string second = fake.Submit("second");
  fake.AwaitEnd(second);
  EXPECT_TRUE(eta_before_a_step(second));
}

}  // namespace
}  // namespace denoised
