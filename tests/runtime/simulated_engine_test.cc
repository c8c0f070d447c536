// What the scheduler is for, on traffic: `make bench` has the same at length.
#include "tests/runtime/simulated_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/runtime/simulated_traffic.h"

namespace denoised {
namespace {

using End = SimulatedOutcome::End;

SimulationOptions OneByOne() {
  SimulationOptions options;
  options.queue.batching = false;
  return options;
}

// Of the jobs of a kind that were done: how long 99 of 100 took at most.
double Slowest(const std::vector<SimulatedJob>& jobs, const SimulationResult& result,
               int64_t kind) {
  std::vector<double> seconds;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (jobs[i].kind != kind || result.outcomes[i].end != End::kDone) continue;
    seconds.push_back(result.outcomes[i].ended - jobs[i].arrives);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() * 99 / 100];
}

int64_t Done(const SimulationResult& result) {
  return std::count_if(result.outcomes.begin(), result.outcomes.end(),
                       [](const SimulatedOutcome& outcome) { return outcome.end == End::kDone; });
}

double AllAlone(const std::vector<SimulatedJob>& jobs) {
  double seconds = 0;
  for (const SimulatedJob& job : jobs) seconds += job.AloneSeconds();
  return seconds;
}

TEST(SimulatedEngineTest, MeetsFarMoreDeadlinesThanFirstComeFirstServedAndNearlyAllThatCanBe) {
  for (const bool bursts : {false, true}) {
    for (const Deadlines deadlines : {Deadlines::kThreefold, Deadlines::kTwoToEight}) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        const auto jobs =
            MakeTraffic({.jobs = 300, .bursts = bursts, .deadlines = deadlines, .seed = seed});
        const double bound = static_cast<double>(OfflineBound(jobs));
        const int64_t met = Simulate(jobs, {}).Met(jobs),
                      off = Simulate(jobs, OneByOne()).Met(jobs);
        EXPECT_GE(met - Simulate(jobs, Fifo()).Met(jobs), 75);  // 25 points
        EXPECT_GE(static_cast<double>(met), 0.9 * bound);
        EXPECT_GE(static_cast<double>(off), 0.9 * bound);
      }
    }
  }
}

TEST(SimulatedEngineTest, ShortJobsDoNotWaitBehindLongOnes) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const auto jobs = MakeTraffic({.jobs = 400, .deadlines = Deadlines::kNone, .seed = seed});
    const SimulationResult ours = Simulate(jobs, {}), fifo = Simulate(jobs, Fifo());
    EXPECT_GE(Slowest(jobs, fifo, 0), 4 * Slowest(jobs, ours, 0)) << seed;
    EXPECT_LE(Slowest(jobs, ours, 2), 4 * Slowest(jobs, fifo, 2))
        << seed;  // nor long ones for ever
    EXPECT_EQ(Done(ours), 400);
  }
}

TEST(SimulatedEngineTest, TheSameTrafficGoesTheSameWayEveryTime) {
  const auto jobs = MakeTraffic({.jobs = 100, .seed = 4});
  const SimulationResult once = Simulate(jobs, {}), twice = Simulate(jobs, {});
  for (size_t i = 0; i < jobs.size(); ++i) {
    EXPECT_EQ(once.outcomes[i].ended, twice.outcomes[i].ended);
  }
}

TEST(SimulatedEngineTest, RefusingWhatCannotBeMetCostsHardlyAnyThatCan) {
  const auto jobs = MakeTraffic({.jobs = 400, .load = 1.5, .seed = 2});
  SimulationOptions options;
  options.admits = true;
  const SimulationResult result = Simulate(jobs, options);
  const int64_t refused =
      std::count_if(result.outcomes.begin(), result.outcomes.end(),
                    [](const SimulatedOutcome& outcome) { return outcome.end == End::kRefused; });
  EXPECT_GT(refused, 0);
  EXPECT_GE(result.Met(jobs) + 8, Simulate(jobs, {}).Met(jobs));  // two of a hundred
}

SimulatedShape Tiny(double call, double row) {
  SimulatedShape shape;
  shape.group = "96";
  shape.tokens = 96;
  shape.multiply_adds = 1e8;
  shape.call = call;
  shape.row = row;
  shape.encode = 0.01;
  shape.chunk = 0.01;
  return shape;
}

std::vector<SimulatedJob> AtOnce(const SimulatedShape& shape, int64_t count, int64_t steps) {
  std::vector<SimulatedJob> jobs(static_cast<size_t>(count));
  for (SimulatedJob& job : jobs) {
    job.shape = &shape;
    job.steps = steps;
  }
  return jobs;
}

TEST(SimulatedEngineTest, EightAtOnceShareTheirForwards) {
  const SimulatedShape shape = Tiny(0.02, 0.004);
  std::vector<SimulatedJob> jobs = AtOnce(shape, 16, 40);
  for (size_t i = 8; i < 16; ++i) jobs[i].arrives = 100;  // when the first eight have taught it
  const SimulationResult result = Simulate(jobs, {});
  EXPECT_GE(AllAlone(jobs) / 2, 3 * (result.ended - 100));
  EXPECT_GE(static_cast<double>(result.forward_rows), 6 * static_cast<double>(result.forwards));
}

TEST(SimulatedEngineTest, WhereRowsShareNothingBatchingLosesNothing) {
  const SimulatedShape shape = Tiny(0.001, 0.1);
  const auto jobs = AtOnce(shape, 8, 40);
  SimulationOptions quiet;
  quiet.noise = 0;
  quiet.stall = 1;
  EXPECT_GE(AllAlone(jobs), 0.98 * Simulate(jobs, quiet).ended);
}

// Ten times what the device can do, for a minute: what is done in that minute, against the same
// device that is never without work and never has a queue.
TEST(SimulatedEngineTest, AFloodDoesNotSlowTheDeviceDown) {
  Traffic traffic = {.jobs = 600, .load = 10, .deadlines = Deadlines::kNone, .seed = 3};
  const auto jobs = MakeTraffic(traffic);
  SimulationOptions minute;
  minute.until = 60;
  const SimulationResult flood = Simulate(jobs, minute);
  const double mean = AllAlone(jobs) / static_cast<double>(jobs.size());
  EXPECT_GE(static_cast<double>(Done(flood)), 0.95 * 60 / mean);
  EXPECT_GE(flood.busy_seconds, 0.99 * (flood.ended - jobs.front().arrives));
}

TEST(SimulatedEngineTest, OneWhoComesOnceAMinuteHardlyNoticesAFlood) {
  const SimulatedShape shape = Tiny(0.1, 0.1);
  std::vector<SimulatedJob> jobs = AtOnce(shape, 2000, 20);
  for (SimulatedJob& job : jobs) job.tenant = "a";
  for (int minute = 1; minute <= 10; ++minute) {
    SimulatedJob job = jobs.front();
    job.tenant = "b";
    job.arrives = 60.0 * minute;
    jobs.push_back(job);
  }
  SimulationOptions options = OneByOne();
  options.until = 660;
  const SimulationResult result = Simulate(jobs, options);
  for (size_t i = 2000; i < jobs.size(); ++i) {
    ASSERT_TRUE(result.outcomes[i].began);
    EXPECT_LE(*result.outcomes[i].began - jobs[i].arrives, 2.1 * jobs[i].AloneSeconds());
  }
}

TEST(SimulatedEngineTest, AFewMayBeginAndStillNobodyIsForgotten) {
  const auto jobs = MakeTraffic({.jobs = 200, .deadlines = Deadlines::kNone, .seed = 6});
  SimulationOptions one;
  one.max_running = 1;
  const SimulationResult result = Simulate(jobs, one);
  EXPECT_EQ(Done(result), 200);
  EXPECT_EQ(result.switches, 0);
}

}  // namespace
}  // namespace denoised
