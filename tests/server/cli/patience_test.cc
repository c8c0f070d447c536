#include "server/cli/patience.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "runtime/job.h"
#include "server/convert_status.h"

namespace denoised::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const grpc::Status kGone(grpc::StatusCode::UNAVAILABLE, "connection refused");

grpc::Status Draining(milliseconds retry_after) {
  return ToStatus(JobError{StatusCode::kUnavailable, "draining", "", "DRAINING", retry_after});
}

class PatienceTest : public testing::Test {
 protected:
  Patience Make(milliseconds total, uint64_t seed = 7) {
    return Patience(total, seed, [this] { return now_; });
  }
  std::chrono::steady_clock::time_point now_;
};

TEST_F(PatienceTest, PausesGrowAndEndWithThePatience) {
  Patience patience = Make(seconds(60));
  milliseconds waited(0), longest(0);
  int pauses = 0;
  while (const auto pause = patience.PauseAfter(kGone)) {
    EXPECT_GT(*pause, milliseconds(0));
    longest = std::max(longest, *pause);
    waited += *pause;
    now_ += *pause;
    ASSERT_LT(++pauses, 100);
  }
  EXPECT_EQ(waited, seconds(60));
  EXPECT_LE(longest, milliseconds(7500));
  EXPECT_GE(pauses, 9) << "a server that is back is found within seconds";
  EXPECT_LE(pauses, 25);
}

TEST_F(PatienceTest, TheServersWordIsKept) {
  Patience patience = Make(seconds(60));
  EXPECT_GE(patience.PauseAfter(Draining(seconds(10))).value(), seconds(10));
  EXPECT_GE(patience.PauseAfter(Draining(seconds(10))).value(), seconds(10));
}

TEST_F(PatienceTest, ThereIsALastTryWhenItEnds) {
  Patience patience = Make(seconds(4));
  EXPECT_EQ(patience.PauseAfter(Draining(seconds(10))), seconds(4));
  now_ += seconds(4);
  EXPECT_FALSE(patience.PauseAfter(Draining(seconds(10))));
}

TEST_F(PatienceTest, AServerThatCameBackIsWaitedForAnew) {
  Patience patience = Make(seconds(2));
  ASSERT_TRUE(patience.PauseAfter(kGone));
  EXPECT_TRUE(patience.waits());
  now_ += seconds(2);
  patience.Renew();
  EXPECT_FALSE(patience.waits());
  const auto pause = patience.PauseAfter(kGone);
  ASSERT_TRUE(pause);
  EXPECT_LE(*pause, milliseconds(150)) << "from the shortest on";
}

TEST_F(PatienceTest, ClientsDoNotComeBackAtOnce) {
  std::set<int64_t> pauses;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    pauses.insert(Make(seconds(60), seed).PauseAfter(Draining(seconds(1)))->count());
  }
  EXPECT_GT(pauses.size(), 10u);
}

TEST_F(PatienceTest, WhatANextTryCannotChangeIsNotTried) {
  Patience patience = Make(seconds(60));
  EXPECT_FALSE(patience.PauseAfter({grpc::StatusCode::NOT_FOUND, "no job"}));
  EXPECT_FALSE(patience.PauseAfter(grpc::Status::OK));
  EXPECT_FALSE(Make(seconds(0)).PauseAfter(kGone));
}

}  // namespace
}  // namespace denoised::cli
