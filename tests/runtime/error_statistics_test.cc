#include "runtime/attention/error_statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "runtime/attention/shadow_budget.h"
#include "runtime/shadow.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

CallError L2(double value) { return {value, 10 * value, 100 * value}; }

double Of(const ErrorStatistics& found, Statistic statistic) {
  return found.Of(ErrorMetric::kRelativeL2, statistic);
}

TEST(ErrorStatistics, PercentilesAreSamples) {
  ErrorStatistics found(1000);
  EXPECT_EQ(Of(found, Statistic::kP99), 0);
  for (int i = 100; i >= 1; --i) found.Add(L2(i));
  EXPECT_EQ(Of(found, Statistic::kP50), 50);
  EXPECT_EQ(Of(found, Statistic::kP90), 90);
  EXPECT_EQ(Of(found, Statistic::kP99), 99);
  EXPECT_EQ(Of(found, Statistic::kMax), 100);
  EXPECT_EQ(Of(found, Statistic::kMean), 50.5);
  EXPECT_EQ(found.Of(ErrorMetric::kMaxAbs, Statistic::kMax), 1000);
  EXPECT_EQ(found.Of(ErrorMetric::kCosineDistance, Statistic::kP50), 5000);
  ErrorStatistics one(9);
  one.Add(L2(4));
  for (Statistic statistic : {Statistic::kP50, Statistic::kP90, Statistic::kP99}) {
    EXPECT_EQ(Of(one, statistic), 4);
  }
}

TEST(ErrorStatistics, TheOldestSamplesGo) {
  ErrorStatistics found(3);
  for (double value : {9.0, 1.0, 2.0, 3.0}) found.Add(L2(value));
  EXPECT_EQ(found.total(), 4);
  EXPECT_EQ(Of(found, Statistic::kMax), 3);
}

// ---- budgets -----------------------------------------------------------------------------------

Budget Wanted(Statistic statistic, double limit, int64_t samples) {
  return {ErrorMetric::kRelativeL2, statistic, limit, samples};
}

// Whether any samples that could still come would hold it: the best ones.
bool HoldsWithTheBestThatCanCome(std::vector<double> last, const Budget& budget) {
  last.resize(static_cast<size_t>(budget.samples), 0);
  std::ranges::sort(last);
  const auto count = static_cast<double>(last.size());
  if (budget.statistic == Statistic::kMean) {
    return std::accumulate(last.begin(), last.end(), 0.0) / count < budget.limit;
  }
  const double part = budget.statistic == Statistic::kP50   ? 0.5
                      : budget.statistic == Statistic::kP90 ? 0.9
                      : budget.statistic == Statistic::kP99 ? 0.99
                                                            : 1;
  // The smallest value that at least that part of all do not exceed.
  for (double value : last) {
    const auto within = static_cast<double>(std::ranges::upper_bound(last, value) - last.begin());
    if (within >= part * count - 1e-9) return value < budget.limit;
  }
  return false;
}

TEST(BudgetSamples, ABudgetIsBrokenAsSoonAsNothingThatCanComeWouldHoldIt) {
  std::mt19937 random(5);
  std::uniform_real_distribution<> error(0, 1);
  int broken = 0, early = 0;
  for (Statistic statistic :
       {Statistic::kMean, Statistic::kP50, Statistic::kP90, Statistic::kP99, Statistic::kMax}) {
    for (int64_t samples : {1, 2, 3, 7, 10, 99, 100, 101, 200}) {
      const double worse = error(random);
      const Budget budget = Wanted(statistic, 0.9 * worse + 0.05, samples);
      BudgetSamples found(budget);
      std::vector<double> last;
      for (int i = 0; i < 2 * samples + 5; ++i) {
        const double one = std::pow(error(random), 3) * (i < samples ? 1.0 : 2 * worse);
        found.Add(L2(one));
        last.push_back(one);
        if (last.size() > static_cast<size_t>(samples)) last.erase(last.begin());
        ASSERT_EQ(!found.WhyBroken(), HoldsWithTheBestThatCanCome(last, budget))
            << ToText(budget) << " after " << i + 1;
        if (found.WhyBroken()) ++(i + 1 < samples ? early : broken);
      }
    }
  }
  EXPECT_GT(broken, 100);
  EXPECT_GT(early, 10);
}

TEST(BudgetSamples, TheThirdFarSampleBreaksAPercentileOverTwoHundred) {
  BudgetSamples found(Wanted(Statistic::kP99, 0.02, 200));
  found.Add(L2(0.5));
  found.Add(L2(0.7));
  EXPECT_FALSE(found.WhyBroken()) << "two of two hundred may be";
  EXPECT_EQ(found.AtLeast(), 0);
  found.Add(L2(0.6));
  EXPECT_THAT(found.WhyBroken().value_or(""),
              AllOf(HasSubstr("relative_l2 p99 < 0.02 over 200"), HasSubstr("at least 0.5"),
                    HasSubstr("3 samples")));
}

TEST(BudgetSamples, ItIsJudgedByTheLastOnes) {
  BudgetSamples found(Wanted(Statistic::kMax, 0.5, 3));
  found.Add(L2(0.6));
  EXPECT_TRUE(found.WhyBroken());
  for (int i = 0; i < 3; ++i) found.Add(L2(0.1));
  EXPECT_FALSE(found.WhyBroken()) << "the last three hold it";
  found.Add(L2(0.5));
  EXPECT_THAT(found.WhyBroken().value_or(""), HasSubstr("it is at 0.5"))
      << "below the limit, not at it";
  EXPECT_EQ(found.total(), 5);
}

TEST(BudgetSamples, WhatIsNotFiniteIsAsFarAsCanBe) {
  BudgetSamples median({ErrorMetric::kCosineDistance, Statistic::kP50, 2, 1});
  median.Add(L2(kInfinity));
  EXPECT_TRUE(median.WhyBroken());
  BudgetSamples mean(Wanted(Statistic::kMean, 1, 2));
  mean.Add(L2(kInfinity));
  EXPECT_TRUE(mean.WhyBroken());
  mean.Add(L2(0));
  mean.Add(L2(0));
  EXPECT_FALSE(mean.WhyBroken());
}

TEST(BudgetSamples, EachMetricIsItsOwn) {
  BudgetSamples far({ErrorMetric::kMaxAbs, Statistic::kMax, 5, 10});
  far.Add(L2(0.49));
  EXPECT_FALSE(far.WhyBroken());
  far.Add(L2(0.5));
  EXPECT_TRUE(far.WhyBroken());
}

// ---- what comparisons may take -----------------------------------------------------------------

TEST(ShadowBudget, UnitsEarnAShareOfTheirTime) {
  ShadowBudget budget(0.02);
  EXPECT_FALSE(budget.Affords(0)) << "nothing was earned";
  budget.Earn(10);
  EXPECT_TRUE(budget.Affords(0.2));
  EXPECT_FALSE(budget.Affords(0.21));
  budget.Spend(0.15, false);
  EXPECT_FALSE(budget.Affords(0.06));
  EXPECT_DOUBLE_EQ(budget.added_seconds(), 0.15);
}

TEST(ShadowBudget, WhatWasSpentInsideAUnitEarnsNothing) {
  ShadowBudget budget(0.5);
  budget.Earn(2);
  budget.Spend(1, true);
  budget.Earn(3);
  EXPECT_DOUBLE_EQ(budget.credit(), 1) << "of the two seconds of its own";
  EXPECT_DOUBLE_EQ(budget.device_seconds(), 4);
}

TEST(ShadowBudget, AQuietDayBuysNoLongPause) {
  ShadowBudget budget(0.5);
  for (int i = 0; i < 3600; ++i) budget.Earn(1);
  EXPECT_DOUBLE_EQ(budget.credit(), ShadowBudget::kMostSeconds);
}

TEST(ShadowBudget, WhereUnitsAreLongAPauseMayBeToo) {
  ShadowBudget budget(0.02);
  for (int i = 0; i < 100; ++i) budget.Earn(200);
  EXPECT_DOUBLE_EQ(budget.credit(), 200 * ShadowBudget::kMostOfAUnit);
  budget.Earn(0.1);
  EXPECT_DOUBLE_EQ(budget.credit(), ShadowBudget::kMostSeconds) << "beside short ones it may not";
}

TEST(ShadowBudget, OneThatTookLongerThanExpectedIsPaidOff) {
  ShadowBudget budget(0.5);
  budget.Earn(1);
  budget.Spend(2, false);
  budget.Earn(2);
  EXPECT_FALSE(budget.Affords(0));
  budget.Earn(2);
  EXPECT_TRUE(budget.Affords(0.5));
}

TEST(SigmaBand, IsAFifthOfTheSchedule) {
  EXPECT_EQ(SigmaBand(0.0), "0-0.2");
  EXPECT_EQ(SigmaBand(0.2), "0.2-0.4");
  EXPECT_EQ(SigmaBand(0.79), "0.6-0.8");
  EXPECT_EQ(SigmaBand(1.0), "0.8-1");
  EXPECT_EQ(SigmaBand(14.6), "above 1");
  EXPECT_EQ(SigmaBand(std::nullopt), "none");
}

}  // namespace
}  // namespace denoised
