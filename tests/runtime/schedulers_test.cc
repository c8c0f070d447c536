#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backends/error.h"
#include "runtime/schedulers/scheduler.h"
#include "runtime/schedulers/unipc_table.h"
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

// ---- what sessions ask --------------------------------------------------------------------------

TEST(SchedulerTest, NoiseLevelsOfItsOwnScheduleGiveThatSchedule) {
  for (const Json& config : {UniPc(), UniPc({{"solver_order", 3}}), Euler(1.0)}) {
    const auto usual = Make(config), given = Make(config);
    usual->SetTimesteps(6, 1.0);
    std::vector<double> levels = usual->sigmas();
    levels.pop_back();
    given->SetSigmas(levels);
    EXPECT_EQ(given->sigmas(), usual->sigmas());
    EXPECT_TRUE(at::equal(Trajectory(given.get(), 6), Trajectory(usual.get(), 6)));
  }
}

// Numbers of diffusers 0.42.1: UniPCMultistepScheduler(prediction_type="flow_prediction",
// use_flow_sigmas=True, flow_shift=1).set_timesteps(sigmas=[1.0, 0.8, 0.35]).
TEST(UniPcTest, GivenNoiseLevelsAreTakenAsTheyAre) {
  const auto scheduler = Make(UniPc({{"flow_shift", 7.0}}));
  scheduler->SetSigmas({1.0, 0.8, 0.35});
  EXPECT_THAT(scheduler->timesteps(), ElementsAre(999, 800, 350));
  const std::vector<double> expected = {.99999899, .8, .35, 0};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(scheduler->sigmas()[i], expected[i], 1e-7);
  }
}

TEST(SchedulerTest, NoiseLevelsThatAreNoScheduleAreRefused) {
  const std::vector<std::vector<double>> bad = {{},
                                                {0.5, 0.5},
                                                {0.4, 0.5},
                                                {1.5},
                                                {0.5, 0.0},
                                                {std::nan("")},
                                                {0.5, -0.1},
                                                {HUGE_VAL},
                                                {0.5, 0.5 - 1e-9},
                                                std::vector<double>(10001, 0.5)};
  for (const Json& config : {UniPc(), Euler(3.0)}) {
    for (const std::vector<double>& levels : bad) {
      try {
        Make(config)->SetSigmas(levels);
        ADD_FAILURE() << testing::PrintToString(levels).substr(0, 80) << " was taken";
      } catch (const Error& error) {
        EXPECT_EQ(error.field(), "sigmas");
      }
    }
  }
}

// Its clones share what the first of them worked out; another schedule's is not taken for it.
TEST(UniPcTest, JobsOfOtherSchedulesBetweenThemChangeNoBit) {
  for (const Json& config : {UniPc(), UniPc({{"solver_order", 3}, {"solver_type", "bh1"}})}) {
    const auto model = Make(config);
    const auto run = [](Scheduler* scheduler, int64_t steps, double shift) {
      scheduler->SetTimesteps(steps, shift);
      return Trajectory(scheduler, steps);
    };
    for (const auto& [steps, shift] : {std::pair{6, 3.0}, {6, 5.0}, {9, 3.0}, {6, 3.0}}) {
      EXPECT_TRUE(
          at::equal(run(model->Clone().get(), steps, shift), run(Make(config).get(), steps, shift)))
          << config << ' ' << steps << ' ' << shift;
    }
  }
}

TEST(UniPcTablesTest, WhatHasNoSolutionHasNoneWhenItIsAskedForAgain) {
  // Both older levels are the same distance away.
  UniPcTable table(at::tensor({0.5, 0.5, 0.4, 0.3, 0.0}, at::kFloat), false);
  for (int time = 0; time < 2; ++time) EXPECT_THROW(table.Corrector(3, 3), c10::Error) << time;
  EXPECT_NO_THROW(table.Corrector(3, 2));
}

TEST(UniPcTablesTest, EqualSchedulesHaveOneAndTheOldestIsForgotten) {
  UniPcTables tables(/*bh1=*/false);
  const auto of = [&](double first) {
    return tables.Of(at::tensor({first, 0.4, 0.0}, at::kFloat));
  };
  const auto first = of(0.9);
  EXPECT_EQ(of(0.9), first);
  EXPECT_NE(of(0.8), first);
  for (int i = 0; i < 7; ++i) of(0.5 + 0.01 * i);
  EXPECT_NE(of(0.9), first) << "eight others came since";
  EXPECT_EQ(first->Predictor(0, 1).ratio, 0.4F / 0.9F) << "and whoever has it goes on";
}

TEST(SchedulerTest, ACopyGoesOnWithTheSameBitsAndLeavesTheFirstAlone) {
  for (const Json& config : {UniPc(), UniPc({{"solver_order", 3}}), Euler(3.0)}) {
    const auto whole = Make(config), first = Make(config);
    whole->SetTimesteps(8);
    first->SetTimesteps(8);
    const at::Tensor wanted = Trajectory(whole.get(), 8);
    at::Tensor x = at::ones({1, 2, 1, 2, 2});
    const auto step = [](Scheduler* scheduler, int64_t i, const at::Tensor& x) {
      return scheduler->Step(at::full_like(x, 0.1 * (i + 1)), i, x);
    };
    for (int64_t i = 0; i < 4; ++i) x = step(first.get(), i, x);
    const auto copy = first->Copy();
    at::Tensor of_copy = x;
    for (int64_t i = 4; i < 8; ++i) of_copy = step(copy.get(), i, of_copy);
    for (int64_t i = 4; i < 8; ++i) x = step(first.get(), i, x);
    EXPECT_TRUE(at::equal(of_copy, wanted));
    EXPECT_TRUE(at::equal(x, wanted));
  }
}

// A schedule begun in its middle is, step for step, the schedule of its remaining levels.
TEST(SchedulerTest, WhatBeginsInTheMiddleRemembersNothingOfBefore) {
  for (const Json& config : {UniPc(), UniPc({{"solver_order", 3}}), Euler(3.0)}) {
    const auto begun = Make(config), rest = Make(config);
    begun->SetTimesteps(8, 1.0);
    const at::Tensor noise = at::ones({1, 2, 1, 2, 2});
    at::Tensor x = noise;
    for (int64_t i = 0; i < 5; ++i) x = begun->Step(at::full_like(x, 0.3), i, x);
    begun->BeginAt(3);
    const std::vector<double>& levels = begun->sigmas();
    rest->SetSigmas({levels.begin() + 3, levels.end() - 1});
    at::Tensor y = x = noise;
    for (int64_t i = 3; i < 8; ++i) {
      const at::Tensor output = at::full_like(x, 0.1 * (i + 1));
      x = begun->Step(output, i, x);
      y = rest->Step(output, i - 3, y);
      ASSERT_TRUE(at::equal(x, y)) << config << " step " << i;
    }
    EXPECT_THROW(begun->BeginAt(9), Error);
    EXPECT_THROW(begun->BeginAt(-1), Error);
    EXPECT_NO_THROW(begun->BeginAt(8)) << "nothing is left then";
  }
}

TEST(SchedulerTest, AStateOfOneThatBeganInTheMiddleIsNotThatOfAWholeOne) {
  const auto begun = Make(UniPc()), whole = Make(UniPc());
  begun->SetTimesteps(6);
  whole->SetTimesteps(6);
  begun->BeginAt(2);
  const at::Tensor x = at::ones({1, 1, 1, 2, 2});
  begun->Step(x, 2, x);
  EXPECT_THROW(whole->Restore(begun->Save(), x), Error);
}

}  // namespace
}  // namespace denoised
