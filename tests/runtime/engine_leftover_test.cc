// Ends that are easily forgotten: of jobs that are put aside, that nobody owns any more, whose
// files are kept in part; and when a client that was refused may come again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "tests/runtime/fake_engine.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

class EngineEnds : public testing::Test {
 protected:
  EngineOptions Durable() const {
    EngineOptions options;
    options.state_dir = folder_.path();
    options.checkpoint_every = 0;
    return options;
  }
  const TemporaryFolder folder_, kept_;
};

TEST_F(EngineEnds, ASuspendedJobsTimeLimitFires) {
  for (const std::string& state_dir : {std::string(), folder_.path().string()}) {
    EngineOptions options;
    options.state_dir = state_dir;
    FakeEngine fake(options);
    fake.model.steps.Close();
    const std::string id = fake.Submit("aside", [&](GenerationRequest& r) {
      r.deadline = fake.clock.now() + std::chrono::seconds(60);
    });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    EXPECT_FALSE(fake.engine->Suspend(id));
    fake.model.steps.Open();
    ASSERT_TRUE(fake.WaitIdle());
    EXPECT_EQ(fake.Get(id).state, JobState::kSuspended);
    fake.clock.Advance(std::chrono::seconds(60));
    const JobSnapshot job = fake.AwaitEnd(id);
    EXPECT_EQ(job.state, JobState::kFailed);
    EXPECT_EQ(job.error->reason, "DEADLINE_EXCEEDED");
    EXPECT_EQ(fake.engine->Resume(id)->reason(), "JOB_FINISHED");
  }
}

TEST_F(EngineEnds, AJobOfACallIsNotTakenUpByTheNextServer) {
  std::string mine, owned;
  {
    FakeEngine fake(Durable());
    fake.model.steps.Close();
    mine = fake.Submit("mine");
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    owned = fake.Submit("a call's", [](GenerationRequest& r) {
      r.belongs_to_call = true;
      r.width = 128;
    });
    // As a kill leaves it: what the store has then.
    CopyLive(folder_.path(), kept_.path() / "state");
  }
  EngineOptions options = Durable();
  options.state_dir = kept_.path() / "state";
  FakeEngine next(options);
  const JobSnapshot job = next.AwaitEnd(owned);
  EXPECT_EQ(job.state, JobState::kCancelled);
  EXPECT_EQ(job.error->reason, "CALL_GONE");
  EXPECT_EQ(next.AwaitEnd(mine).state, JobState::kSucceeded);
}

TEST_F(EngineEnds, AStopEndsTheJobsOfCallsAndKeepsTheOthers) {
  FakeEngine fake(Durable());
  fake.model.steps.Close();
  const auto of_call = [](GenerationRequest& r) { r.belongs_to_call = true; };
  const std::string running = fake.Submit("runs", of_call);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const auto waits = [](GenerationRequest& r) { r.width = 128; };
  const std::string kept = fake.Submit("waits", waits);
  const std::string waiting = fake.Submit("waits for a call", [&](GenerationRequest& r) {
    waits(r);
    of_call(r);
  });
  fake.engine->BeginNoMore();
  EXPECT_EQ(fake.Get(waiting).error->reason, "DRAINING");
  fake.engine->Stop();
  fake.model.steps.Open();
  fake.engine->Shutdown();
  EXPECT_EQ(fake.Get(running).state, JobState::kCancelled);
  EXPECT_EQ(fake.Get(kept).state, JobState::kQueued);
}

TEST_F(EngineEnds, AJobWhoseSecondFileFailsHasNone) {
  for (const std::string& state_dir : {std::string(), folder_.path().string()}) {
    EngineOptions options;
    options.state_dir = state_dir;
    FakeEngine fake(options);
    fake.store->on_artifact = [](const ArtifactInfo& info) {
      if (info.format == ArtifactFormat::kNpy) {
        throw Error(StatusCode::kResourceExhausted, "no room", "", "DISK");
      }
    };
    const JobSnapshot job = fake.AwaitEnd(fake.Submit("two", [](GenerationRequest& r) {
      r.formats = {ArtifactFormat::kSafetensors, ArtifactFormat::kNpy};
    }));
    EXPECT_EQ(job.state, JobState::kFailed);
    EXPECT_EQ(job.error->reason, "DISK");
    EXPECT_THAT(job.artifacts, IsEmpty());
    EXPECT_FALSE(fake.engine->jobs().GetArtifact(job.id, ArtifactFormat::kSafetensors));
    if (state_dir.empty()) continue;
    fake.engine->Shutdown();  // the end is seen before its files have gone
    const std::filesystem::path results = folder_.path() / "artifacts";
    EXPECT_TRUE(std::filesystem::is_empty(results));
  }
}

TEST_F(EngineEnds, EmbeddingsThatDifferBeginTheJobAnewAndItsReceiptSaysSo) {
  FakeEngine fake;
  fake.model.on_begin = [](const RunRequest& run) {
    if (run.saved.empty()) return;
    throw Error(StatusCode::kFailedPrecondition, "the embeddings are others", "saved",
                "EMBEDDINGS_DIFFER");
  };
  fake.model.steps.Close();
  const std::string id =
      fake.Submit("aside", [](GenerationRequest& r) { r.num_inference_steps = 5; });
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.engine->Suspend(id);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_FALSE(fake.engine->Resume(id));
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kSucceeded) << (job.error ? job.error->message : "");
  EXPECT_EQ(fake.model.steps_run, 1 + 5);
  EXPECT_THAT(job.receipt.notes,
              Contains("begun again from step 0, not from step 1: the embeddings are others"));
}

TEST_F(EngineEnds, AResumeWithoutACheckpointIsCountedToo) {
  std::string id;
  {
    FakeEngine fake(Durable(), /*steps_open=*/false);
    id = fake.Submit("killed");
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    CopyLive(folder_.path(), kept_.path() / "state");
    fake.engine->Cancel(id);
  }
  EngineOptions options = Durable();
  options.state_dir = kept_.path() / "state";
  FakeEngine next(options);
  EXPECT_EQ(next.AwaitEnd(id).state, JobState::kSucceeded);
  EXPECT_EQ(next.observer.begun_again, 1);
  EXPECT_EQ(next.observer.resumed, 0);
}

// ---- when to come again

std::chrono::milliseconds InMilliseconds(double seconds) {
  return std::chrono::milliseconds(std::lround(1000 * seconds));
}

TEST(EngineRetry, AFullQueueNamesTheTimeThatItPredictsForAPlace) {
  EngineOptions options;
  options.max_queued_jobs = 2;
  FakeEngine fake(options);
  fake.model.on_unit = [](const Unit&, int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  fake.AwaitEnd(fake.Submit("teaches how long a step takes"));
  fake.StartBlocked("runs", [](GenerationRequest& r) { r.num_inference_steps = 800; });
  const auto other = [](GenerationRequest& r) {
    r.num_inference_steps = 1000;
    r.width = 128;
  };
  const std::string next = fake.Submit("next", other);
  fake.Submit("after it", other);
  const Error refused = std::get<Error>(fake.engine->Submit(SmallRequest("refused")));
  EXPECT_EQ(refused.reason(), "QUEUE_FULL");
  const double turn = fake.Get(next).starts_in_seconds.value();
  EXPECT_GT(turn, 3) << "800 steps of 5 ms";
  EXPECT_EQ(refused.retry_after(), InMilliseconds(1.1 * turn)) << "and a little later";
}

TEST(EngineRetry, WhereNoMoreMayBeginAPlaceIsFreeWhenOneHasEnded) {
  EngineOptions options;
  options.max_queued_jobs = options.max_running_jobs = 1;
  FakeEngine fake(options);
  fake.model.on_unit = [](const Unit&, int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  fake.AwaitEnd(fake.Submit("teaches how long a step takes"));
  fake.StartBlocked("runs", [](GenerationRequest& r) { r.num_inference_steps = 800; });
  const std::string urgent =
      fake.Submit("urgent", [](GenerationRequest& r) { r.priority = Priority::kUrgent; });
  EXPECT_EQ(fake.Get(urgent).starts_in_seconds, 0) << "it is due first, and may not begin";
  const Error refused = std::get<Error>(fake.engine->Submit(SmallRequest("refused")));
  EXPECT_GT(refused.retry_after(), std::chrono::seconds(3));
}

TEST(EngineRetry, TimesAreWithinASecondAndTenMinutes) {
  EngineOptions options;
  options.max_queued_jobs = options.max_running_jobs = 1;
  FakeEngine fake(options, /*steps_open=*/true, 2, [&](FakeModel* model) {
    model->unit_clock = [&] { return fake.clock.now(); };
    model->on_unit = [&](const Unit& unit, int64_t) {
      if (unit.kind == UnitKind::kStep) fake.clock.Advance(std::chrono::milliseconds(700));
    };
  });
  const auto refused = [&] {
    return std::get<Error>(fake.engine->Submit(SmallRequest("refused"))).retry_after();
  };
  fake.AwaitEnd(fake.Submit("teaches", [](auto& r) { r.num_inference_steps = 1; }));
  for (const int64_t steps : {1, 1000}) {  // 700 s
    fake.model.steps.Close();
    const int64_t before = fake.model.steps.arrivals();
    const std::string runs = fake.Submit("runs", [&](auto& r) { r.num_inference_steps = steps; });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(before + 1));
    const std::string waits = fake.Submit("waits", [](auto& r) { r.num_inference_steps = 1; });
    EXPECT_EQ(refused(), steps == 1 ? std::chrono::seconds(1) : std::chrono::minutes(10));
    fake.engine->Cancel(runs);
    fake.model.steps.Open();
    fake.AwaitEnd(waits);
  }
}

TEST(EngineRetry, DrainingAndCallsHaveTheirOwn) {
  EngineOptions options;
  options.max_queued_denoise_calls = 1;
  FakeEngine fake(options);
  fake.model.denoise.Close();
  DenoiseRequest call;
  call.latents = {DType::kFloat32, {1}, std::string(4, '\0')};
  Promised<Engine::DenoiseOutcome> last;
  const auto ignored = [](Engine::DenoiseOutcome) {};
  fake.engine->Denoise(call, nullptr, ignored);
  ASSERT_TRUE(fake.model.denoise.AwaitArrival(1));
  fake.engine->Denoise(call, nullptr, ignored);
  fake.engine->Denoise(call, nullptr, [&](Engine::DenoiseOutcome o) { last.Set(std::move(o)); });
  ASSERT_TRUE(last.Await());
  EXPECT_EQ(std::get<Error>(last.value()).reason(), "QUEUE_FULL");
  EXPECT_GE(std::get<Error>(last.value()).retry_after(), std::chrono::seconds(1));
  fake.engine->Drain();
  const Error draining = std::get<Error>(fake.engine->Submit(SmallRequest("refused")));
  EXPECT_EQ(draining.reason(), "DRAINING");
  EXPECT_TRUE(draining.retry_after());
  fake.model.denoise.Open();
}

}  // namespace
}  // namespace denoised
