// What leases and rules hold for, and which of two leases is narrower.
#include "runtime/scope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "backends/error.h"
#include "runtime/budget.h"

namespace denoised {
namespace {

TEST(Scope, AnEmptyOneHoldsForEverythingAndIsCalledServer) {
  const LeaseScope all;
  EXPECT_TRUE(all.Holds({"m", "t", "id"}));
  EXPECT_TRUE(all.where.Holds({AttentionRole::kVae, 3, std::nullopt, std::nullopt}));
  EXPECT_EQ(ToText(all), "server");
  EXPECT_EQ(KindsText(all), "server");
}

// Each kind alone: where it holds, and just beside.
TEST(Scope, EachKindHoldsWhereItSaysAndNowhereElse) {
  LeaseScope scope;
  scope.job = "a";
  EXPECT_TRUE(scope.Holds({"m", "t", "a"}));
  EXPECT_FALSE(scope.Holds({"m", "t", "b"}));
  scope = {};
  scope.tenant = "a";
  EXPECT_TRUE(scope.Holds({"m", "a", "x"}));
  EXPECT_FALSE(scope.Holds({"m", "", "x"}));
  scope = {};
  scope.model = "a";
  EXPECT_TRUE(scope.Holds({"a", "", ""}));
  EXPECT_FALSE(scope.Holds({"b", "", ""}));

  const auto at = [](int64_t layer, std::optional<int64_t> step, std::optional<double> sigma,
                     AttentionRole role = AttentionRole::kSelf) {
    return Place{role, layer, step, sigma};
  };
  PlaceScope where{.role = AttentionRole::kCross};
  EXPECT_TRUE(where.Holds(at(0, 0, 1, AttentionRole::kCross)));
  EXPECT_FALSE(where.Holds(at(0, 0, 1)));
  where = {.layers = Interval{2, 4}};
  EXPECT_FALSE(where.Holds(at(1, 0, 1)));
  EXPECT_TRUE(where.Holds(at(2, 0, 1)));
  EXPECT_TRUE(where.Holds(at(4, 0, 1)));
  EXPECT_FALSE(where.Holds(at(5, 0, 1)));
  EXPECT_FALSE(where.Holds({AttentionRole::kVae, std::nullopt, std::nullopt, std::nullopt}));
  where = {.steps = Interval{1, 1}};
  EXPECT_FALSE(where.Holds(at(0, 0, 1)));
  EXPECT_TRUE(where.Holds(at(0, 1, 1)));
  EXPECT_FALSE(where.Holds(at(0, std::nullopt, 1))) << "outside of the loop";
  where = {.sigma = SigmaRange{0.25, 0.5}};
  EXPECT_FALSE(where.Holds(at(0, 0, 0.2499)));
  EXPECT_TRUE(where.Holds(at(0, 0, 0.25)));
  EXPECT_TRUE(where.Holds(at(0, 0, 0.5)));
  EXPECT_FALSE(where.Holds(at(0, 0, 0.5001)));
  EXPECT_FALSE(where.Holds(at(0, 0, std::nullopt)));
}

TEST(Scope, IsAConjunction) {
  LeaseScope scope;
  scope.model = "m";
  scope.tenant = "t";
  for (const char* model : {"m", "n"}) {
    for (const char* tenant : {"t", "u"}) {
      EXPECT_EQ(scope.Holds({model, tenant, "id"}),
                std::string(model) == "m" && std::string(tenant) == "t");
    }
  }
}

// One lease for each kind, narrowest first: the order that scope.h writes down.
std::vector<LeaseScope> OneOfEachKind() {
  std::vector<LeaseScope> scopes(9);
  scopes[0].job = "j";
  scopes[1].tenant = "t";
  scopes[2].share = 0.5;
  scopes[3].model = "m";
  scopes[4].where.layers = Interval{0, 0};
  scopes[5].where.steps = Interval{0, 0};
  scopes[6].where.sigma = SigmaRange{0, 0.1};
  scopes[7].where.role = AttentionRole::kSelf;
  return scopes;  // the last says nothing
}

// The truth table: every set of kinds against every other one. What decides is the first kind in
// which the two differ, in the order of the kinds.
TEST(Scope, NarrownessOfEverySetOfKindsIsDecidedByTheFirstKindInWhichTheyDiffer) {
  const std::vector<LeaseScope> kinds = OneOfEachKind();
  const auto with = [&](unsigned set) {  // bit 7: job ... bit 0: role
    LeaseScope scope;
    if (set & 0x80) scope.job = kinds[0].job;
    if (set & 0x40) scope.tenant = kinds[1].tenant;
    if (set & 0x20) scope.share = kinds[2].share;
    if (set & 0x10) scope.model = kinds[3].model;
    if (set & 0x08) scope.where.layers = kinds[4].where.layers;
    if (set & 0x04) scope.where.steps = kinds[5].where.steps;
    if (set & 0x02) scope.where.sigma = kinds[6].where.sigma;
    if (set & 0x01) scope.where.role = kinds[7].where.role;
    return scope;
  };
  for (unsigned a = 0; a < 256; ++a) {
    for (unsigned b = 0; b < 256; ++b) {
      // As numbers, the set with the higher first difference is the larger one.
      EXPECT_EQ(CompareNarrowness(with(a), with(b)), b <=> a) << a << " against " << b;
    }
  }
}

TEST(Scope, OfTheSameKindsTheSmallerExtentIsNarrower) {
  LeaseScope few, many;
  few.where.layers = Interval{10, 11};
  many.where.layers = Interval{0, 5};
  EXPECT_TRUE(CompareNarrowness(few, many) < 0);
  EXPECT_TRUE(CompareNarrowness(many, few) > 0);
  EXPECT_TRUE(CompareNarrowness(few, few) == 0);
  few = many = {};
  few.where.sigma = SigmaRange{0.5, 0.6};
  many.where.sigma = SigmaRange{0.1, 0.3};
  EXPECT_TRUE(CompareNarrowness(few, many) < 0);
  few = many = {};
  few.share = 0.1;
  many.share = 0.2;
  EXPECT_TRUE(CompareNarrowness(few, many) < 0);
}

TEST(Scope, TextsAreReadAsTheyAreWritten) {
  EXPECT_EQ(ToText(Interval{4, 19}), "4-19");
  EXPECT_EQ(ToText(Interval{4, 4}), "4");
  EXPECT_EQ(ParseInterval("4-19"), (Interval{4, 19}));
  EXPECT_EQ(ParseInterval("7"), (Interval{7, 7}));
  for (const char* bad :
       {"", "-", "a", "3-", "-3", "5-4", "1-2-3", "1.5", " 1", "1 ", "99999999999999999999"}) {
    EXPECT_FALSE(ParseInterval(bad)) << bad;
  }
  EXPECT_EQ(ToText(SigmaRange{0.2, 0.9}), "0.2-0.9");
  EXPECT_EQ(ParseSigmaRange("0.2-0.9"), (SigmaRange{0.2, 0.9}));
  EXPECT_EQ(ParseSigmaRange("1"), (SigmaRange{1, 1}));
  for (const char* bad : {"", "0.9-0.2", "nan", "0-inf", "x-1", "-0.5-1"}) {
    EXPECT_FALSE(ParseSigmaRange(bad)) << bad;
  }
  LeaseScope scope;
  scope.model = "shapes";
  scope.share = 0.2;
  scope.where.layers = Interval{0, 5};
  scope.where.sigma = SigmaRange{0.00001, 0.5};
  EXPECT_EQ(ToText(scope), "share=20% model=shapes layers=0-5 sigma=0.00001-0.5");
  EXPECT_EQ(KindsText(scope), "share+model+layers+sigma");
  EXPECT_EQ(ParseSigmaRange(ToText(*scope.where.sigma)), scope.where.sigma);
}

TEST(Scope, WhatCanHoldForNothingIsRefusedByItsField) {
  const auto field = [](const LeaseScope& scope) -> std::string {
    try {
      CheckScope(scope, "scope");
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
      return error.field();
    }
  };
  LeaseScope scope;
  EXPECT_EQ(field(scope), "");
  scope.where.layers = Interval{3, 2};
  EXPECT_EQ(field(scope), "scope.layers");
  scope = {};
  scope.where.steps = Interval{-1, 2};
  EXPECT_EQ(field(scope), "scope.steps");
  scope = {};
  scope.where.sigma = SigmaRange{0.5, std::numeric_limits<double>::quiet_NaN()};
  EXPECT_EQ(field(scope), "scope.sigma");
  for (const double share : {0.0, -0.1, 1.01, std::numeric_limits<double>::quiet_NaN()}) {
    scope = {};
    scope.share = share;
    EXPECT_EQ(field(scope), "scope.share_percent") << share;
  }
  scope = {};
  scope.tenant = std::string(129, 'x');
  EXPECT_EQ(field(scope), "scope.tenant");
  scope.tenant = "two words";
  EXPECT_EQ(field(scope), "scope.tenant");
}

std::vector<std::string> RandomIds(size_t count) {
  std::mt19937_64 random(7);
  std::vector<std::string> ids;
  for (size_t i = 0; i < count; ++i) {
    char id[33];
    std::snprintf(id, sizeof id, "%016llx%016llx", static_cast<unsigned long long>(random()),
                  static_cast<unsigned long long>(random()));
    ids.emplace_back(id);
  }
  return ids;
}

// Random ids as jobs have them, and the counted ones of calls.
TEST(Scope, AShareIsHitEvenlyAndALargerOneHoldsAllOfASmallerOne) {
  std::vector<std::string> ids = RandomIds(20'000), counted;
  for (int i = 0; i < 20'000; ++i) counted.push_back("call-" + std::to_string(i));
  for (const auto& kind : {ids, counted}) {
    for (const double share : {0.01, 0.2, 0.5, 0.99, 1.0}) {
      LeaseScope scope;
      scope.share = share;
      const auto in = std::ranges::count_if(kind, [&](const std::string& id) {
        return scope.Holds({"m", "", id});
      });
      const double expected = share * static_cast<double>(kind.size());
      // Five standard deviations of a fair draw.
      EXPECT_NEAR(static_cast<double>(in), expected, 5 * std::sqrt(expected * (1 - share)) + 1e-9);
      LeaseScope larger;
      larger.share = std::min(1.0, share * 1.5);
      for (const std::string& id : kind) {
        EXPECT_TRUE(larger.Holds({"m", "", id}) || !scope.Holds({"m", "", id}));
      }
    }
  }
}

TEST(Budget, TextsAreReadAsTheyAreWritten) {
  const auto budget = ParseBudget("relative_l2 p99 < 0.02 over 200");
  ASSERT_TRUE(budget);
  EXPECT_EQ(budget->metric, ErrorMetric::kRelativeL2);
  EXPECT_EQ(budget->statistic, Statistic::kP99);
  EXPECT_EQ(budget->limit, 0.02);
  EXPECT_EQ(budget->samples, 200);
  EXPECT_EQ(ToText(*budget), "relative_l2 p99 < 0.02 over 200");
  for (const char* bad :
       {"", "relative_l2", "relative_l3 p99 < 0.02 over 200", "relative_l2 p98 < 0.02 over 200",
        "relative_l2 p99 > 0.02 over 200", "relative_l2 p99 < x over 200",
        "relative_l2 p99 < 0.02 over 2.5", "relative_l2 p99 < 0.02 over 200 more"}) {
    EXPECT_FALSE(ParseBudget(bad)) << bad;
  }
  EXPECT_THROW(CheckBudget({ErrorMetric::kMaxAbs, Statistic::kMax, 0, 5}, "budget"), Error);
  EXPECT_THROW(CheckBudget({ErrorMetric::kMaxAbs, Statistic::kMax, 1, 0}, "budget"), Error);
  EXPECT_NO_THROW(CheckBudget({ErrorMetric::kMaxAbs, Statistic::kMax, 1, 1}, "budget"));
}

}  // namespace
}  // namespace denoised
