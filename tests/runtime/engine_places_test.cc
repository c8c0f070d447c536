// Where jobs stand that wait, and when they will begin and end: as readers and watchers are told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

// One after the other, so that a place in the order is the number of jobs before.
EngineOptions Fifo(int64_t jobs = 64) {
  EngineOptions options;
  options.policy = EngineOptions::Policy::kFifo;
  options.batching = false;
  options.max_queued_jobs = jobs;
  return options;
}

auto Steps(int64_t count) {
  return [count](GenerationRequest& request) { request.num_inference_steps = count; };
}

// Has run one job, so that times are known, and stands in the first step of another.
struct BusyEngine : FakeEngine {
  explicit BusyEngine(const EngineOptions& options, int64_t running_steps = 3)
      : FakeEngine(options) {
    model.on_unit = [](const Unit&, int64_t) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    };
    AwaitEnd(FakeEngine::Submit("teaches how long a step takes"));
    model.steps.Close();
    const int64_t before = model.steps.arrivals();
    running = FakeEngine::Submit("runs", Steps(running_steps));
    EXPECT_TRUE(model.steps.AwaitArrival(before + 1));
  }
  std::string running;
};

// What a watcher reads each time that it is woken.
class Watcher {
 public:
  Watcher(FakeEngine* fake, std::string id) : fake_(fake), id_(std::move(id)) {
    watch_ = fake_->engine->jobs().Watch(id_, [state = state_] {
      const std::lock_guard lock(state->mutex);
      ++state->wakes;
      state->woken.notify_all();
    });
    seen_ = fake_->Get(id_).sequence;
  }
  // Reads after each wake until the condition holds of something newer than what was read before.
  bool Await(const std::function<bool(const JobSnapshot&)>& condition) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    for (;;) {
      const JobSnapshot job = fake_->Get(id_);
      if (job.sequence > seen_ && condition(job)) return true;
      std::unique_lock lock(state_->mutex);
      const int64_t before = std::exchange(read_, state_->wakes);
      if (state_->wakes > before) continue;
      if (!state_->woken.wait_until(lock, until, [&] { return state_->wakes > read_; }))
        return false;
    }
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable woken;
    int64_t wakes = 0;
  };
  FakeEngine* const fake_;
  const std::string id_;
  const std::shared_ptr<State> state_ = std::make_shared<State>();
  std::shared_ptr<void> watch_;
  int64_t read_ = 0;
  uint64_t seen_ = 0;
};

TEST(EnginePlaces, AJobThatIsResumedStandsWhereItStoodAndSaysSo) {
  BusyEngine fake(Fifo());
  const std::string first = fake.Submit("first");
  const std::string second = fake.Submit("second");
  const JobSnapshot before = fake.Get(second);
  EXPECT_EQ(before.queue_position, 2);
  ASSERT_FALSE(fake.engine->Suspend(second));
  EXPECT_EQ(fake.Get(second).queue_position, 0);
  EXPECT_FALSE(fake.Get(second).starts_in_seconds) << "nobody knows when it is resumed";
  EXPECT_FALSE(fake.Get(second).eta_seconds);
  ASSERT_FALSE(fake.engine->Resume(second));
  const JobSnapshot after = fake.Get(second);
  EXPECT_EQ(after.queue_position, 2);
  EXPECT_DOUBLE_EQ(after.starts_in_seconds.value(), before.starts_in_seconds.value());
  EXPECT_DOUBLE_EQ(after.eta_seconds.value(), before.eta_seconds.value());
}

TEST(EnginePlaces, InALongQueueEverybodyIsToldWhereHeStands) {
  constexpr int64_t kJobs = 1500;
  BusyEngine fake(Fifo(kJobs));
  std::vector<std::string> ids;
  for (int64_t i = 0; i < kJobs; ++i) ids.push_back(fake.Submit("p", Steps(1)));
  for (const int64_t i : {int64_t{0}, int64_t{999}, int64_t{1000}, kJobs - 1}) {
    const JobSnapshot job = fake.Get(ids[i]);
    EXPECT_EQ(job.queue_position, i + 1);
    EXPECT_GT(job.starts_in_seconds.value_or(0), 0);
  }
  const JobPage page = fake.engine->ListJobs(JobState::kQueued, 10, "");
  for (size_t i = 0; i < page.jobs.size(); ++i) {
    EXPECT_EQ(page.jobs[i].queue_position, kJobs - static_cast<int64_t>(i));
  }
  Watcher last(&fake, ids.back());
  for (int64_t i = 0; i + 1 < kJobs; ++i) fake.engine->Cancel(ids[i]);
  EXPECT_TRUE(last.Await([](const JobSnapshot& job) { return job.queue_position == 1; }));
}

TEST(EnginePlaces, WhatASubmitAnswersNamesThePlace) {
  BusyEngine fake(Fifo());
  fake.Submit("first");
  const auto answer = std::get<JobSnapshot>(fake.engine->Submit(SmallRequest("second")));
  EXPECT_EQ(answer.queue_position, 2);
  EXPECT_TRUE(answer.starts_in_seconds && answer.eta_seconds);
}

TEST(EnginePlaces, APredictedStartComesNearerWithEachStepThoughThePlaceStays) {
  BusyEngine fake(Fifo(), /*running_steps=*/100);
  const std::string waits = fake.Submit("waits");
  const double before = fake.Get(waits).starts_in_seconds.value();
  const int64_t arrived = fake.model.steps.arrivals();
  fake.model.steps.Allow(95);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(arrived + 95));
  const JobSnapshot job = fake.Get(waits);
  EXPECT_EQ(fake.Get(fake.running).step, 95);
  EXPECT_EQ(job.queue_position, 1);
  EXPECT_LT(job.starts_in_seconds.value(), before) << "5 steps are left of 100";
}

TEST(EnginePlaces, WatchersHearOfAStartThatMovesThoughThePlaceStays) {
  BusyEngine fake(Fifo(), /*running_steps=*/1000);
  const std::string waits = fake.Submit("waits");
  Watcher watcher(&fake, waits);
  const double before = fake.Get(waits).starts_in_seconds.value();
  ASSERT_GT(before, 1.5) << "1000 steps of 2 ms";
  fake.model.steps.Allow(990);  // and it waits on
  EXPECT_TRUE(watcher.Await([&](const JobSnapshot& job) {
    return job.state == JobState::kQueued && job.queue_position == 1 &&
           job.starts_in_seconds.value() < before - 1;
  }));
}

TEST(EnginePlaces, AWaitingJobEndsWhenItsOwnTimeHasPassedAfterItsStart) {
  BusyEngine fake(Fifo(), 100);
  const std::string shorter = fake.Submit("shorter", Steps(10));
  const std::string longer = fake.Submit("longer", Steps(1000));
  const JobSnapshot a = fake.Get(shorter), b = fake.Get(longer);
  const double own_a = a.eta_seconds.value() - a.starts_in_seconds.value();
  const double own_b = b.eta_seconds.value() - b.starts_in_seconds.value();
  EXPECT_GT(own_a, 0);
  EXPECT_GT(own_b, 20 * own_a) << "a hundred times as many steps";
  EXPECT_NEAR(b.starts_in_seconds.value(), a.eta_seconds.value(), 0.5 * a.eta_seconds.value());
}

TEST(EnginePlaces, NoEndIsPredictedWhereNothingEverRan) {
  FakeEngine fake(Fifo(), /*steps_open=*/false);
  fake.Submit("runs");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  EXPECT_FALSE(fake.Get(fake.Submit("waits")).eta_seconds);
}

TEST(EnginePlaces, ADecodingJobHasThePredictedRemainder) {
  FakeEngine fake(Fifo());
  const auto frames = [](GenerationRequest& r) { r.formats = {ArtifactFormat::kNpy}; };
  fake.AwaitEnd(fake.Submit("teaches how long frames take", frames));
  fake.model.finish.Close();
  const int64_t before = fake.model.finish.arrivals();
  const std::string id = fake.Submit("decodes", frames);
  ASSERT_TRUE(fake.model.finish.AwaitArrival(before + 1));
  const JobSnapshot job = fake.Get(id);
  EXPECT_EQ(job.stage, JobStage::kDecode);
  EXPECT_GT(job.eta_seconds.value_or(0), 0);
  fake.model.finish.Open();
  EXPECT_FALSE(fake.AwaitEnd(id).eta_seconds);
}

}  // namespace
}  // namespace denoised
