#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backends/error.h"
#include "runtime/schedulers/scheduler.h"
#include "tests/runtime/scheduler_configs.h"

namespace denoised {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Refusal(const Json& config) {
  try {
    Make(config);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), StatusCode::kInvalidArgument);
    return e.what();
  }
  return "accepted";
}

// A run on outputs that depend on the step alone.
at::Tensor Trajectory(Scheduler* scheduler, int64_t steps) {
  at::Tensor x = at::ones({1, 2, 1, 2, 2});
  for (int64_t i = 0; i < steps; ++i) x = scheduler->Step(at::full_like(x, 0.1 * (i + 1)), i, x);
  return x;
}

TEST(UniPcTest, LaysOutTheScheduleOfThePublishedExample) {
  const auto scheduler = Make(UniPc());
  scheduler->SetTimesteps(4);
  EXPECT_THAT(scheduler->timesteps(), ElementsAre(999, 900, 750, 500));
  const std::vector<double> expected = {.99999899, .90011996, .75037479, .50099897, 0};
  ASSERT_EQ(scheduler->sigmas().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(scheduler->sigmas()[i], expected[i], 1e-7);
  }
}

TEST(UniPcTest, FeedsWholeTimestepsOnePerRow) {
  const auto scheduler = Make(UniPc());
  scheduler->SetTimesteps(4);
  const at::Tensor t = scheduler->TimestepTensor(1, 3, at::kCPU);
  EXPECT_EQ(t.scalar_type(), at::kLong);
  EXPECT_TRUE(at::equal(t, at::full({3}, 900, at::kLong)));
}

TEST(UniPcTest, ARequestedShiftReplacesTheConfiguredOne) {
  const auto asked = Make(UniPc()), configured = Make(UniPc({{"flow_shift", 5.0}}));
  asked->SetTimesteps(6, 5.0);
  configured->SetTimesteps(6);
  EXPECT_EQ(asked->sigmas(), configured->sigmas());
}

TEST(UniPcTest, OneStepLandsOnTheCleanPrediction) {
  const auto scheduler = Make(UniPc());
  scheduler->SetTimesteps(1);
  const at::Tensor x = at::ones({1, 1, 1, 2, 2}), v = at::full_like(x, 0.25);
  const at::Tensor clean = x - v * scheduler->sigmas()[0];
  EXPECT_TRUE(at::allclose(scheduler->Step(v, 0, x), clean, 1e-6, 1e-7));
}

TEST(EulerTest, ShiftsTheEndPointsAndTheLineBetweenThem) {
  const auto scheduler = Make(Euler(5.0));
  scheduler->SetTimesteps(4);
  const std::vector<double> expected = {1, .90971, .71732, .02441, 0};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(scheduler->sigmas()[i], expected[i], 1e-5);
  }
  EXPECT_EQ(scheduler->TimestepTensor(0, 2, at::kCPU).scalar_type(), at::kFloat);
}

TEST(SchedulerTest, ACloneStartsWithoutHistory) {
  for (const Json& config : {UniPc(), Euler(3.0)}) {
    const auto first = Make(config);
    first->SetTimesteps(5);
    const at::Tensor once = Trajectory(first.get(), 5);
    const auto second = first->Clone();
    second->SetTimesteps(5);
    EXPECT_TRUE(at::equal(Trajectory(second.get(), 5), once));
    first->SetTimesteps(5);
    EXPECT_TRUE(at::equal(Trajectory(first.get(), 5), once)) << "SetTimesteps kept history";
  }
}

TEST(SchedulerTest, StepsComeInOrder) {
  const auto scheduler = Make(UniPc());
  scheduler->SetTimesteps(3);
  const at::Tensor x = at::ones({1, 1, 1, 1, 1});
  EXPECT_THROW(scheduler->Step(x, 1, x), Error);
  scheduler->Step(x, 0, x);
  EXPECT_THROW(scheduler->Step(x, 0, x), Error);
  scheduler->Step(x, 1, x);
  scheduler->Step(x, 2, x);
  EXPECT_THROW(scheduler->Step(x, 3, x), Error);
}

TEST(SchedulerTest, RefusesCountsAndShiftsThatMakeNoSchedule) {
  for (const Json& config : {UniPc(), Euler(3.0)}) {
    const auto scheduler = Make(config);
    for (int64_t steps : {int64_t{0}, int64_t{-4}, int64_t{1} << 40}) {
      EXPECT_THROW(scheduler->SetTimesteps(steps), Error) << steps;
    }
    for (double shift : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
      EXPECT_THROW(scheduler->SetTimesteps(4, shift), Error) << shift;
    }
  }
}

TEST(SchedulerTest, NamesFileKeyAndValueOfWhatItDoesNotDo) {
  const std::string unknown = Refusal({{"_class_name", "DDIMScheduler"}});
  EXPECT_THAT(unknown, HasSubstr("scheduler_config.json"));
  EXPECT_THAT(unknown, HasSubstr("_class_name"));
  EXPECT_THAT(unknown, HasSubstr("DDIMScheduler"));
  const std::string option = Refusal(UniPc({{"use_karras_sigmas", true}}));
  EXPECT_THAT(option, HasSubstr("use_karras_sigmas"));
  EXPECT_THAT(option, HasSubstr("true"));
  EXPECT_THAT(Refusal({{"_class_name", "UniPCMultistepScheduler"}}), HasSubstr("prediction_type"));
}

TEST(SchedulerTest, OldNamesOfTheSecondSolverMeanIt) {
  const auto bh2 = Make(UniPc({{"solver_type", "bh2"}})),
             old = Make(UniPc({{"solver_type", "heun"}}));
  bh2->SetTimesteps(6);
  old->SetTimesteps(6);
  EXPECT_TRUE(at::equal(Trajectory(bh2.get(), 6), Trajectory(old.get(), 6)));
}

}  // namespace
}  // namespace denoised
