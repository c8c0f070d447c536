// Several tenants on one device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "runtime/engine/work_queue.h"
#include "tests/runtime/queue_runner.h"

namespace denoised {
namespace {

Work From(std::string tenant, Work work) {
  work.tenant = std::move(tenant);
  return work;
}

class FairnessTest : public testing::Test {
 protected:
  WorkId Add(const std::string& tenant, double seconds) {
    runner_.Add(From(tenant, Arrives(next_, runner_.now, seconds)));
    return next_++;
  }
  void Flood(const std::string& tenant, int works, double seconds) {
    for (int i = 0; i < works; ++i) Add(tenant, seconds);
  }
  // Runs until there is so much time, and says who had how much of it.
  std::map<std::string, double> SharesUntil(double time, const std::map<WorkId, std::string>& of) {
    const auto ended_before = runner_.ended;
    runner_.RunUntil(time);
    std::map<std::string, double> shares;
    for (const auto& [id, ended] : runner_.ended) {
      if (ended_before.count(id) == 0) shares[of.at(id)] += 1;
    }
    return shares;
  }

  WorkQueue queue_;
  Runner runner_{&queue_};
  WorkId next_ = 0;
};

TEST_F(FairnessTest, TwoThatFloodHaveEqualParts) {
  std::map<WorkId, std::string> of;
  for (int i = 0; i < 400; ++i) of[Add("a", 2)] = "a";
  for (int i = 0; i < 100; ++i) of[Add("b", 2)] = "b";
  const auto shares = SharesUntil(300, of);
  EXPECT_NEAR(shares.at("a"), 75, 2);
  EXPECT_NEAR(shares.at("b"), 75, 2);
}

TEST_F(FairnessTest, PartsAreOfTheDeviceNotOfTheNumberOfWorks) {
  std::map<WorkId, std::string> of;
  for (int i = 0; i < 400; ++i) of[Add("short", 1)] = "short";
  for (int i = 0; i < 100; ++i) of[Add("long", 10)] = "long";
  const auto shares = SharesUntil(400, of);
  EXPECT_NEAR(shares.at("short"), 200, 12);
  EXPECT_NEAR(shares.at("long"), 20, 2);
}

TEST_F(FairnessTest, AnybodyWaitsForTwoWorksOfOneWhoFloodsAtMost) {
  for (const double length : {1.0, 4.0, 12.0}) {
    Flood("a", 2000, 4);
    for (int minute = 0; minute < 20; ++minute) {
      const double came = runner_.now;
      const WorkId id = Add("b", length);
      runner_.RunUntil(came + 60);
      ASSERT_EQ(runner_.began.count(id), 1u);
      EXPECT_LE(runner_.began[id] - came, 2 * 4 + 0.5);
    }
  }
}

TEST_F(FairnessTest, TwoMinutesOfSilenceBuyNothing) {
  Flood("a", 1000, 1);
  Add("b", 1);
  runner_.RunUntil(120);  // b has been away for most of it
  std::map<WorkId, std::string> of;
  for (int i = 0; i < 200; ++i) of[Add("b", 1)] = "b";
  for (WorkId id = 0; id < 1001; ++id) of[id] = "a";
  const auto shares = SharesUntil(runner_.now + 100, of);
  EXPECT_NEAR(shares.at("b"), 50, 3);
}

TEST_F(FairnessTest, WhoGotAheadAndLeftComesBackBehind) {
  Flood("a", 100, 1);
  Flood("b", 100, 1);
  runner_.RunUntil(10);
  queue_.Charge("a", 50);  // of something that took longer than anybody thought
  std::map<WorkId, std::string> of;
  for (WorkId id = 0; id < 200; ++id) of[id] = id < 100 ? "a" : "b";
  const auto shares = SharesUntil(50, of);
  EXPECT_EQ(shares.count("a"), 0u);
}

TEST_F(FairnessTest, EqualLongWorksOfTwoTenantsRunOneAfterTheOther) {
  Add("a", 50);
  Add("b", 50);
  runner_.RunToEnd();
  EXPECT_EQ(runner_.switches, 0);
  EXPECT_DOUBLE_EQ(runner_.ended[0], 50);
  EXPECT_DOUBLE_EQ(runner_.ended[1], 100);
}

TEST_F(FairnessTest, ATenantThatComesInTheMiddleOfALongWorkIsServedInOnePiece) {
  Flood("a", 10, 50);
  runner_.RunUntil(25);
  const WorkId id = Add("b", 50);
  runner_.RunToEnd();
  EXPECT_LE(runner_.began[id], 25 + 50 + 1);
  EXPECT_NEAR(runner_.ended[id] - runner_.began[id], 50, 1);
  EXPECT_LE(runner_.switches, 2);
}

TEST_F(FairnessTest, DeadlinesOfTenantsThatLeaveEachOtherRoomAreMetAsIfTheyWereOne) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> length(1, 5);
  std::map<WorkId, double> deadlines;
  for (int i = 0; i < 300; ++i) {
    Work work = From(std::to_string(i % 5), Arrives(next_, runner_.now, length(random)));
    deadlines[next_] = runner_.now + 6 * work.seconds_left;
    runner_.Add(WithDeadline(work, deadlines[next_++]));
    const double next = runner_.now + 5;
    runner_.RunUntil(next);
    runner_.now = std::max(runner_.now, next);
  }
  runner_.RunToEnd();
  for (const auto& [id, deadline] : deadlines) EXPECT_LE(runner_.ended[id], deadline);
}

TEST_F(FairnessTest, OneWhoFloodsWithDeadlinesDoesNotTakeTheDeviceFromTheOthers) {
  for (int i = 0; i < 500; ++i) {
    runner_.Add(From("a", WithDeadline(Arrives(next_++, 0, 2), 500 + i)));
  }
  const WorkId id = Add("b", 20);
  runner_.RunUntil(60);
  ASSERT_EQ(runner_.ended.count(id), 1u);
}

TEST_F(FairnessTest, PlacesInTheOrderKnowOfTenants) {
  Flood("a", 1000, 4);
  const WorkId id = Add("b", 4);
  EXPECT_LE(queue_.Rank(id), 2);
  EXPECT_LE(queue_.SecondsAhead(id), 8);
  EXPECT_GE(queue_.Rank(900), 900);
  EXPECT_LE(queue_.Rank(900), 901);
  EXPECT_LE(queue_.PredictedFinish(From("c", Arrives(next_, runner_.now, 4)), At(runner_.now)), 16);
}

TEST_F(FairnessTest, PredictedTimesOfTenantsAreNearThoseOfRunningItAll) {
  std::mt19937_64 random(4);
  std::uniform_real_distribution<double> length(2, 6);
  for (int i = 0; i < 120; ++i) Add(i % 4 == 0 ? "a" : i % 3 == 0 ? "b" : "c", length(random));
  std::map<WorkId, double> ahead;
  for (WorkId id = 0; id < next_; ++id) ahead[id] = queue_.SecondsAhead(id);
  runner_.RunToEnd();
  double error = 0;
  for (const auto& [id, seconds] : ahead) error += std::abs(seconds - runner_.began[id]);
  EXPECT_LE(error / static_cast<double>(next_), 12);  // three works of about 480 seconds
}

TEST_F(FairnessTest, NothingIsKeptOfTenantsThatLeft) {
  for (int i = 0; i < 3000; ++i) {
    Add(std::to_string(i), 1);
    runner_.RunToEnd();
  }
  const uint64_t before = queue_.visits();  // sums over the tenants that are kept
  EXPECT_LE(before, 3000u * 40);
  EXPECT_EQ(queue_.size(), 0);
}

TEST_F(FairnessTest, FirstComeFirstServedKnowsNoTenants) {
  WorkQueue queue({.policy = QueueOptions::Policy::kFifo});
  Runner runner(&queue);
  for (WorkId id = 0; id < 20; ++id) runner.Add(From(id < 19 ? "a" : "b", Arrives(id, 0, 1)));
  runner.RunToEnd();
  EXPECT_EQ(runner.order.back(), 19u);
}

}  // namespace
}  // namespace denoised
