// When a unit hangs, by ticks.
#include "runtime/engine/watchdog.h"

#include <gtest/gtest.h>

#include <thread>

namespace denoised {
namespace {

using std::chrono::seconds;

// Ticks of a second, as of all that hang after eight seconds or longer.
class WatchdogTest : public testing::Test {
 protected:
  WatchdogTest()
      : dog_(seconds(60), {[this](const WatchedUnit&, double at) { hung_.push_back(at); },
                           [this](const WatchedUnit& unit, double at) {
                             recovered_.emplace_back(unit.kind, at);
                           },
                           [this](const WatchedUnit&, double at) { given_up_.push_back(at); }}) {
    EXPECT_EQ(dog_.tick(), seconds(1));
  }
  static WatchedUnit Step(double expected, bool measured = true) {
    return {"step", "shapes", "SAGE_ATTN", {"a"}, 0, expected, measured};
  }
  void Tick(int times) {
    for (int i = 0; i < times; ++i) dog_.Tick();
  }

  std::vector<double> hung_, given_up_;
  std::vector<std::pair<std::string, double>> recovered_;
  Watchdog dog_;
};

using Times = std::vector<double>;

TEST_F(WatchdogTest, AUnitHangsAfterTheTimeThatIsGivenAndIsGivenUpAfterItOnceMore) {
  const Watchdog::Scope unit(&dog_, Step(0.1));
  Tick(59);
  EXPECT_FALSE(dog_.Hung());
  Tick(1);
  EXPECT_EQ(dog_.Hung(), "step of shapes (SAGE_ATTN) has run for 60 s");
  Tick(59);
  EXPECT_EQ(hung_, Times{60}) << "told once";
  EXPECT_EQ(given_up_, Times{});
  Tick(10);
  EXPECT_EQ(given_up_, Times{120}) << "told once";
}

TEST_F(WatchdogTest, AUnitThatTakesLongHasTenTimesAsLong) {
  const Watchdog::Scope unit(&dog_, Step(30));
  Tick(299);
  EXPECT_FALSE(dog_.Hung());
  Tick(61);
  EXPECT_EQ(hung_, Times{300});
  EXPECT_EQ(given_up_, Times{360});
}

TEST_F(WatchdogTest, WhatNeverRanHasThirtyTimesAsLong) {
  const Watchdog::Scope unit(&dog_, Step(0.1, false));
  Tick(30 * 60 - 1);
  EXPECT_FALSE(dog_.Hung());
  Tick(1);
  EXPECT_TRUE(dog_.Hung());
}

TEST_F(WatchdogTest, WhatEndsAfterAllIsForgiven) {
  {
    const Watchdog::Scope unit(&dog_, Step(0.1));
    Tick(100);
    EXPECT_TRUE(dog_.Hung());
  }
  EXPECT_FALSE(dog_.Hung());
  EXPECT_EQ(recovered_, (std::vector<std::pair<std::string, double>>{{"step", 100}}));
  const Watchdog::Scope next(&dog_, Step(0.1));
  Tick(59);
  EXPECT_FALSE(dog_.Hung()) << "the next one has all its time";
  EXPECT_EQ(given_up_, Times{});
}

TEST_F(WatchdogTest, ManyShortUnitsAndNoneAreNoHang) {
  for (int i = 0; i < 100; ++i) {
    const Watchdog::Scope unit(&dog_, Step(0.1));
    Tick(30);
  }
  Tick(10000);
  EXPECT_EQ(hung_, Times{});
  EXPECT_TRUE(recovered_.empty());
}

// What a SIGSTOP, a debugger or the lid of a laptop does: time passes and nobody ticks.
TEST(Watchdog, TimeWithoutTicksDoesNotCount) {
  bool hung = false;
  const auto nothing = [](const WatchedUnit&, double) {};
  Watchdog dog(std::chrono::milliseconds(80),
               {[&](const WatchedUnit&, double) { hung = true; }, nothing, nothing});
  const Watchdog::Scope unit(&dog, {"step", "shapes", "", {}, 0, 0, true});
  dog.Tick();
  std::this_thread::sleep_for(10 * std::chrono::milliseconds(80));
  dog.Tick();
  EXPECT_FALSE(hung);
}

}  // namespace
}  // namespace denoised
