// The steps by which a server does less when memory runs short: readings go in, steps come out.
#include "runtime/engine/memory_ladder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace denoised {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;

// Of a server with a room of 1,000 MiB above 9,000 MiB of models.
MemoryReading Grown(int64_t mib, int64_t promised_mib = 0) {
  return {10'000 * kMiB, 9'000 * kMiB, mib * kMiB, promised_mib * kMiB, 0};
}

MemoryStep After(MemoryLadder& ladder, const MemoryReading& reading, int looks) {
  for (int i = 0; i < looks; ++i) ladder.Take(reading);
  return ladder.now().step;
}

TEST(MemoryLadder, GoesUpAndDownAgainStepByStep) {
  MemoryLadder ladder;
  std::vector<MemoryStep> up, down;
  for (int mib : {849, 851, 919, 921, 949, 951}) {
    up.push_back(After(ladder, Grown(mib), MemoryLadder::kLooks));
  }
  EXPECT_THAT(up, ElementsAre(MemoryStep::kNone, MemoryStep::kNoNewWork, MemoryStep::kNoNewWork,
                              MemoryStep::kShedWatchers, MemoryStep::kShedWatchers,
                              MemoryStep::kRefuseConnections));
  for (int mib : {901, 899, 871, 869, 801, 799}) down.push_back(After(ladder, Grown(mib), 1));
  EXPECT_THAT(down, ElementsAre(MemoryStep::kRefuseConnections, MemoryStep::kShedWatchers,
                                MemoryStep::kShedWatchers, MemoryStep::kNoNewWork,
                                MemoryStep::kNoNewWork, MemoryStep::kNone));
}

TEST(MemoryLadder, DoesNotFlutterBetweenTwoLooks) {
  MemoryLadder ladder;
  After(ladder, Grown(860), MemoryLadder::kLooks);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(ladder.Take(Grown(i % 2 == 0 ? 840 : 860)).step, MemoryStep::kNoNewWork);
  }
}

TEST(MemoryLadder, AMomentIsNoReason) {
  MemoryLadder ladder;
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(After(ladder, Grown(2'000), MemoryLadder::kLooks - 1), MemoryStep::kNone);
    ladder.Take(Grown(100));
  }
  EXPECT_EQ(After(ladder, Grown(2'000), MemoryLadder::kLooks), MemoryStep::kRefuseConnections)
      << "what lasts is one, and all steps are taken at once";
}

TEST(MemoryLadder, ModelsThatFillTheLimitPressNobody) {
  MemoryLadder ladder;
  EXPECT_EQ(After(ladder, Grown(0), 10), MemoryStep::kNone);
  const MemoryReading full = {10'000 * kMiB, 10'000 * kMiB, 50 * kMiB, 0, 0};
  EXPECT_EQ(After(ladder, full, 10), MemoryStep::kNone) << "64 MiB are always left to others";
}

TEST(MemoryLadder, AJobThatTakesAllThatItWasPromisedPressesNobody) {
  MemoryLadder ladder;
  After(ladder, Grown(20), 10);
  for (int mib : {20, 300, 915, 20, 915}) {
    EXPECT_EQ(After(ladder, Grown(mib, 900), 10), MemoryStep::kNone) << mib;
  }
  EXPECT_EQ(After(ladder, Grown(30), 10), MemoryStep::kNone) << "and when it has ended";
}

TEST(MemoryLadder, WhatAJobTakesBeyondItsPromisePresses) {
  MemoryLadder ladder;
  EXPECT_EQ(After(ladder, Grown(900 + 40, 900), 10), MemoryStep::kNone);
  EXPECT_EQ(After(ladder, Grown(900 + 86, 900), 10), MemoryStep::kNoNewWork);
}

TEST(MemoryLadder, WhatWasThereBeforeAJobPressesItFromItsBeginning) {
  MemoryLadder ladder;
  EXPECT_EQ(After(ladder, Grown(600), 10), MemoryStep::kNone);
  EXPECT_EQ(After(ladder, Grown(600, 500), 10), MemoryStep::kRefuseConnections)
      << "they leave 400 of the 500 that it will take";
  EXPECT_EQ(ladder.now().taken_bytes, 600 * kMiB);
  EXPECT_EQ(ladder.now().room_bytes, 500 * kMiB);
}

TEST(MemoryLadder, WhatIsGivenBackWhileAJobRunsIsTheOthers) {
  MemoryLadder ladder;
  After(ladder, Grown(600), 10);
  After(ladder, Grown(800, 300), 10);
  EXPECT_EQ(ladder.now().step, MemoryStep::kNoNewWork) << "600 of 700";
  ladder.Take(Grown(500, 300));
  EXPECT_EQ(ladder.now().taken_bytes, 300 * kMiB);
  EXPECT_EQ(ladder.now().step, MemoryStep::kNone);
}

TEST(MemoryLadder, RequestsCountAlsoWhereNothingShowsYet) {
  MemoryLadder ladder;
  MemoryReading reading = Grown(0);
  reading.counted = 900 * kMiB;
  EXPECT_EQ(After(ladder, reading, 10), MemoryStep::kNoNewWork);
}

TEST(MemoryLadder, SaysHowMuchMustGo) {
  MemoryLadder ladder;
  After(ladder, Grown(840), 10);
  EXPECT_EQ(MemoryLadder::Excess(ladder.now()), 0);
  After(ladder, Grown(900), 10);
  EXPECT_NEAR(static_cast<double>(MemoryLadder::Excess(ladder.now())), 100.0 * kMiB, 2);
  After(ladder, Grown(810), 10);
  EXPECT_NEAR(static_cast<double>(MemoryLadder::Excess(ladder.now())), 10.0 * kMiB, 2);
  EXPECT_THAT(ShortText(ladder.now()), AllOf(HasSubstr("810 MiB"), HasSubstr("1000 MiB")));
}

}  // namespace
}  // namespace denoised
