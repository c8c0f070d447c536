#include "runtime/attention/breakers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using std::chrono::seconds;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr AttnBackend kBad = AttnBackend::kSageAttn;

AttentionSpec SpecOf(int64_t queries, int64_t keys = 512) {
  AttentionSpec spec = SelfSpec();
  spec.q_len = queries;
  spec.kv_len = keys;
  return spec;
}

class BreakersTest : public testing::Test {
 protected:
  void Fail(int times) {
    for (int i = 0; i < times; ++i) breakers_.Failed(kBad, spec_, "it broke");
  }
  std::string WhyNot(Breakers::Asker asker = nullptr) const {
    return breakers_.WhyNot(kBad, spec_, asker).value_or("");
  }

  ManualClock clock_;
  Breakers breakers_{clock_.function()};
  const AttentionSpec spec_ = SpecOf(4000);
  const int one_ = 1, other_ = 2;
};

TEST_F(BreakersTest, ThreeFailuresInARowOpenIt) {
  Fail(2);
  EXPECT_EQ(WhyNot(), "");
  breakers_.Succeeded(kBad, spec_, &one_);
  Fail(2);
  EXPECT_EQ(WhyNot(), "") << "a success begins the count anew";
  EXPECT_THAT(breakers_.List(), IsEmpty());
  Fail(1);
  EXPECT_EQ(WhyNot(), "circuit breaker open after 3 failures: it broke; probe in 60 s");
  EXPECT_EQ(WhyNot(&one_), "circuit breaker open after 3 failures: it broke");
}

TEST_F(BreakersTest, ItIsOfOneBackendAndOneClassOfCalls) {
  Fail(3);
  EXPECT_FALSE(breakers_.WhyNot(AttnBackend::kReference, spec_));
  EXPECT_TRUE(breakers_.WhyNot(kBad, SpecOf(2049))) << "of one class with 4000";
  EXPECT_TRUE(breakers_.WhyNot(kBad, SpecOf(4096)));
  EXPECT_FALSE(breakers_.WhyNot(kBad, SpecOf(2048)));
  EXPECT_FALSE(breakers_.WhyNot(kBad, SpecOf(4097)));
  EXPECT_FALSE(breakers_.WhyNot(kBad, SpecOf(4000, 513)));
  const auto differs = [&](auto change) {
    AttentionSpec other = spec_;
    change(other);
    return !breakers_.WhyNot(kBad, other);
  };
  EXPECT_TRUE(differs([](AttentionSpec& spec) { spec.role = AttentionRole::kCross; }));
  EXPECT_TRUE(differs([](AttentionSpec& spec) { spec.dtype = DType::kBFloat16; }));
  EXPECT_TRUE(differs([](AttentionSpec& spec) { spec.head_size = 64; }));
  EXPECT_TRUE(differs([](AttentionSpec& spec) { spec.has_mask = true; }));
  EXPECT_TRUE(differs([](AttentionSpec& spec) { spec.causal = true; }));
}

TEST_F(BreakersTest, AfterAMinuteOneAskerMayProbe) {
  Fail(3);
  clock_.Advance(seconds(59));
  EXPECT_THAT(WhyNot(), HasSubstr("probe in 1 s"));
  EXPECT_NE(WhyNot(&one_), "");
  clock_.Advance(seconds(1));
  EXPECT_EQ(WhyNot(&one_), "");
  breakers_.Claim(kBad, spec_, &one_);
  EXPECT_EQ(WhyNot(&one_), "");
  EXPECT_THAT(WhyNot(&other_), AllOf(HasSubstr("half open"), HasSubstr("it broke"),
                                     HasSubstr("a probe is under way")));
  breakers_.Claim(kBad, spec_, &other_);
  EXPECT_THAT(WhyNot(&other_), HasSubstr("under way")) << "the first has it";
}

TEST_F(BreakersTest, AProbeThatGoesWellClosesIt) {
  Fail(3);
  clock_.Advance(seconds(60));
  breakers_.Claim(kBad, spec_, &one_);
  breakers_.Succeeded(kBad, spec_, &other_);
  EXPECT_THAT(breakers_.List(), SizeIs(1)) << "not the probe";
  breakers_.Succeeded(kBad, spec_, &one_);
  EXPECT_THAT(breakers_.List(), IsEmpty());
  EXPECT_EQ(WhyNot(&other_), "");
  Fail(2);
  EXPECT_EQ(WhyNot(), "") << "and the count begins anew";
}

TEST_F(BreakersTest, AProbeThatFailsOpensItForAnotherMinute) {
  Fail(3);
  clock_.Advance(seconds(60));
  breakers_.Claim(kBad, spec_, &one_);
  breakers_.Failed(kBad, spec_, "still broken");
  EXPECT_EQ(WhyNot(), "circuit breaker open after 4 failures: still broken; probe in 60 s");
  clock_.Advance(seconds(60));
  EXPECT_EQ(WhyNot(&other_), "");
}

TEST_F(BreakersTest, AProbeThatCameToNothingIsGivenBack) {
  Fail(3);
  clock_.Advance(seconds(60));
  breakers_.Claim(kBad, spec_, &one_);
  breakers_.Leave(&other_);
  EXPECT_THAT(WhyNot(&other_), HasSubstr("under way"));
  breakers_.Leave(&one_, SpecOf(9));
  EXPECT_THAT(WhyNot(&other_), HasSubstr("under way")) << "it was of another class";
  const uint64_t before = breakers_.version();
  breakers_.Leave(&one_);
  EXPECT_EQ(WhyNot(&other_), "");
  EXPECT_GT(breakers_.version(), before);
}

TEST_F(BreakersTest, WhatBecameOfThemIsToldOnce) {
  const auto changes = [&] {
    std::vector<std::string> all;
    for (const Breakers::Change& change : breakers_.TakeChanges()) {
      all.push_back(std::string(BreakerStateName(change.from)) + " to " +
                    std::string(BreakerStateName(change.to)));
    }
    return all;
  };
  Fail(2);
  EXPECT_THAT(changes(), IsEmpty());
  Fail(2);
  EXPECT_THAT(changes(), ElementsAre("closed to open")) << "a failure of what ran by then is none";
  EXPECT_THAT(changes(), IsEmpty());
  clock_.Advance(seconds(60));
  Fail(1);
  clock_.Advance(seconds(60));
  breakers_.Claim(kBad, spec_, &one_);
  breakers_.Succeeded(kBad, spec_, &one_);
  EXPECT_THAT(changes(), ElementsAre("half_open to open", "half_open to closed"));
}

TEST_F(BreakersTest, TheVersionMovesWhenOneOpensIsHalfOpenAndCloses) {
  uint64_t version = breakers_.version();
  const auto moved = [&] {
    return std::exchange(version, breakers_.version()) < breakers_.version();
  };
  Fail(2);
  EXPECT_FALSE(moved());
  Fail(1);
  EXPECT_TRUE(moved());
  clock_.Advance(seconds(59));
  EXPECT_FALSE(moved());
  clock_.Advance(seconds(1));
  EXPECT_TRUE(moved());
  EXPECT_FALSE(moved()) << "once";
  breakers_.Claim(kBad, spec_, &one_);
  breakers_.Succeeded(kBad, spec_, &one_);
  EXPECT_TRUE(moved());
}

TEST_F(BreakersTest, ThoseThatAreNotClosedAreListed) {
  Fail(3);
  clock_.Advance(seconds(20));
  const auto open = breakers_.List();
  ASSERT_THAT(open, SizeIs(1));
  EXPECT_EQ(open[0].backend, kBad);
  EXPECT_EQ(open[0].state, BreakerState::kOpen);
  EXPECT_EQ(open[0].remaining, seconds(40));
  EXPECT_EQ(open[0].failures, 3);
  EXPECT_EQ(open[0].last_error, "it broke");
  EXPECT_EQ(open[0].shape, "self float32 head 128 queries 4096 keys 512");
  clock_.Advance(seconds(40));
  EXPECT_EQ(breakers_.List().at(0).state, BreakerState::kHalfOpen);
  EXPECT_EQ(breakers_.List().at(0).remaining, seconds(0));
}

}  // namespace
}  // namespace denoised
