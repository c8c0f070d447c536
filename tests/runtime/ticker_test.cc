#include "runtime/ticker.h"

#include <gtest/gtest.h>

#include <atomic>

namespace denoised {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

TEST(Ticker, TicksAgainAndAgain) {
  std::atomic<int> ticks{0};
  const Ticker ticker(milliseconds(1), [&] { ++ticks; });
  while (ticks < 3) std::this_thread::yield();
}

TEST(Ticker, NowIsOnTheCallersThreadAndNoTwoAreAtATime) {
  std::atomic<int> inside{0}, most{0}, ticks{0};
  Ticker ticker(milliseconds(1), [&] {
    most = std::max<int>(most, ++inside);
    ++ticks;
    std::this_thread::yield();
    --inside;
  });
  for (int i = 0; i < 100; ++i) ticker.Now();
  EXPECT_GE(ticks, 100);
  EXPECT_EQ(most, 1);
}

TEST(Ticker, SoonIsOnItsOwnThreadBeforeThePeriodIsOver) {
  std::atomic<int> ticks{0};
  std::atomic<std::thread::id> ticked{};
  Ticker ticker(hours(24), [&] {
    ticked = std::this_thread::get_id();
    ++ticks;
  });
  for (int i = 1; i <= 3; ++i) {
    ticker.Soon();
    while (ticks < i) std::this_thread::yield();
  }
  EXPECT_NE(ticked.load(), std::this_thread::get_id());
}

TEST(Ticker, EndsWithoutWaitingForItsPeriod) {
  std::atomic<int> ticks{0};
  {
    const Ticker ticker(hours(24), [&] { ++ticks; });
  }
  EXPECT_EQ(ticks, 0);
}

}  // namespace
}  // namespace denoised
