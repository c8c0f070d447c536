// The order within one tenant, deadlines, what is predicted of it.
#include "runtime/engine/work_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "tests/runtime/queue_runner.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<WorkId> OrderOf(const std::vector<Work>& works, QueueOptions options = {}) {
  WorkQueue queue(options);
  Runner runner(&queue);
  for (const Work& work : works) runner.Add(work);
  runner.RunToEnd();
  return runner.order;
}

constexpr QueueOptions kFifo = {.policy = QueueOptions::Policy::kFifo};

TEST(WorkQueueTest, AnEmptyOneHasNoLead) {
  WorkQueue queue;
  EXPECT_EQ(queue.Lead(At(0), true), std::nullopt);
  EXPECT_EQ(queue.Remove(3), std::nullopt);
  EXPECT_EQ(queue.Rank(3), -1);
  EXPECT_LT(queue.SecondsAhead(3), 0);
  queue.Update(3, {});
  queue.Charge("nobody", 1);
  EXPECT_EQ(queue.size(), 0);
}

TEST(WorkQueueTest, EarliestDeadlineFirst) {
  EXPECT_THAT(OrderOf({WithDeadline(Arrives(1, 0, 1), 30), WithDeadline(Arrives(2, 0, 1), 10),
                       WithDeadline(Arrives(3, 0, 1), 20)}),
              ElementsAre(2, 3, 1));
}

TEST(WorkQueueTest, WithoutDeadlinesShortComesBeforeLongAndEqualOnesAsTheyCame) {
  EXPECT_THAT(OrderOf({Arrives(1, 0, 50), Arrives(2, 0.1, 5), Arrives(3, 0.2, 5)}),
              ElementsAre(2, 3, 1));
}

TEST(WorkQueueTest, UrgentBeforeNormalBeforeBatch) {
  EXPECT_THAT(OrderOf({Of(Arrives(1, 0, 5), Priority::kBatch), Arrives(2, 0, 5),
                       Of(Arrives(3, 0, 5), Priority::kUrgent)}),
              ElementsAre(3, 2, 1));
}

TEST(WorkQueueTest, AnUrgentShortOneTakesTheDeviceFromALongOneAtTheNextUnit) {
  WorkQueue queue;
  Runner runner(&queue);
  runner.Add(Arrives(1, 0, 100));
  runner.RunUntil(10);
  runner.Add(Of(Arrives(2, runner.now, 2), Priority::kUrgent));
  runner.RunToEnd();
  EXPECT_THAT(runner.order, ElementsAre(2, 1));
  EXPECT_DOUBLE_EQ(runner.ended[2], 12);
}

TEST(WorkQueueTest, FirstComeFirstServedIsJustThat) {
  EXPECT_THAT(OrderOf({Arrives(1, 0, 50), WithDeadline(Arrives(2, 0, 1), 3),
                       Of(Arrives(3, 0, 1), Priority::kUrgent)},
                      kFifo),
              ElementsAre(1, 2, 3));
}

TEST(WorkQueueTest, EqualLongWorksAreNotSliced) {
  WorkQueue queue;
  Runner runner(&queue);
  for (WorkId id = 1; id <= 5; ++id) runner.Add(Arrives(id, 0.1 * static_cast<double>(id), 40));
  runner.RunToEnd();
  EXPECT_EQ(runner.switches, 0);
  EXPECT_THAT(runner.order, ElementsAre(1, 2, 3, 4, 5));
}

TEST(WorkQueueTest, WhatBeganIsNotPushedAsideByItsEqualsThatComeLater) {
  WorkQueue queue;
  Runner runner(&queue);
  for (WorkId id = 1; id <= 50; ++id) {
    runner.Add(WithDeadline(Arrives(id, runner.now, 4), runner.now + 400));
    runner.RunUntil(runner.now + 3);
  }
  runner.RunToEnd();
  EXPECT_EQ(runner.switches, 0);
}

// A long one, and short ones that come for ever as fast as the device can do.
TEST(WorkQueueTest, NobodyWaitsForEver) {
  for (const Priority priority : {Priority::kBatch, Priority::kNormal}) {
    WorkQueue queue;
    Runner runner(&queue, 1);
    runner.Add(Of(Arrives(0, 0, 10), priority));
    for (WorkId id = 1; id < 4000 && runner.ended.count(0) == 0; ++id) {
      runner.Add(Arrives(id, runner.now, 1));
      runner.RunUnit();
    }
    ASSERT_EQ(runner.ended.count(0), 1u);
    EXPECT_GT(runner.ended[0], 100);  // it let others pass
  }
}

TEST(WorkQueueTest, OnlyWhatHasBegunGoesOnWhereNothingMayBegin) {
  WorkQueue queue;
  queue.Add(Arrives(1, 0, 1));
  queue.Add(Arrives(2, 0, 50));
  EXPECT_EQ(queue.Lead(At(0), true), WorkId{1});
  EXPECT_EQ(queue.Lead(At(0), false), std::nullopt);
  queue.Update(2, Begun(50));
  EXPECT_EQ(queue.resident(), 1);
  EXPECT_EQ(queue.Lead(At(0), false), WorkId{2});
  EXPECT_EQ(queue.Lead(At(0), true), WorkId{1});
  queue.Update(2, Arrives(2, 0, 50));
  EXPECT_EQ(queue.resident(), 0);
  EXPECT_EQ(queue.Lead(At(0), false), std::nullopt);
}

TEST(WorkQueueTest, TheLongestIsGivenUpWhereNotAllDeadlinesCanBeMet) {
  WorkQueue queue;
  Runner runner(&queue);
  runner.Add(WithDeadline(Arrives(1, 0, 8), 9));
  for (WorkId id = 2; id <= 5; ++id) runner.Add(WithDeadline(Arrives(id, 0, 2), 10));
  runner.RunToEnd();
  EXPECT_THAT(runner.order, ElementsAre(2, 3, 4, 5, 1));
  EXPECT_LE(runner.ended[5], 10);
}

TEST(WorkQueueTest, AHopelessDeadlineHarmsNobody) {
  WorkQueue queue;
  Runner runner(&queue);
  runner.Add(WithDeadline(Arrives(1, 0, 100), 1));
  runner.Add(WithDeadline(Arrives(2, 0, 5), 6));
  runner.Add(Arrives(3, 0, 5));
  runner.RunToEnd();
  EXPECT_THAT(runner.order, ElementsAre(2, 3, 1));
}

TEST(WorkQueueTest, UrgentWorkIsGivenUpLast) {
  WorkQueue queue;
  Runner runner(&queue);
  runner.Add(Of(WithDeadline(Arrives(1, 0, 8), 9), Priority::kUrgent));
  runner.Add(WithDeadline(Arrives(2, 0, 4), 10));
  runner.RunToEnd();
  EXPECT_THAT(runner.order, ElementsAre(1, 2));
}

// Random sets that a schedule is known to meet: works are cut from a full timeline, and each may
// arrive at any time before its first piece and must end at or after its last.
TEST(WorkQueueTest, EverySetOfDeadlinesThatCanBeMetIsMet) {
  std::mt19937_64 random(5);
  const auto whole = [&](int from, int to) {
    return std::uniform_int_distribution<int>(from, to)(random);
  };
  for (int round = 0; round < 200; ++round) {
    std::map<double, std::vector<Work>> arrivals;
    std::vector<Work> works(12);
    for (int second = 0; second < 60; ++second) {
      Work& work = works[static_cast<size_t>(whole(0, 11))];
      if (work.seconds_left == 0) work.arrived = At(std::max(0, second - whole(0, 9)));
      work.seconds_left += 1;
      work.deadline = At(second + 1 + (second % 7 == 0 ? whole(0, 5) : 0));
    }
    WorkQueue queue;
    Runner runner(&queue, 1);
    for (size_t i = 0; i < works.size(); ++i) {
      works[i].id = i;
      if (works[i].seconds_left > 0) {
        arrivals[std::chrono::duration<double>(works[i].arrived.time_since_epoch()).count()]
            .push_back(works[i]);
      }
    }
    for (const auto& [time, come] : arrivals) {
      runner.RunUntil(time);
      runner.now = std::max(runner.now, time);
      for (const Work& work : come) runner.Add(work);
    }
    runner.RunToEnd();
    for (const Work& work : works) {
      EXPECT_TRUE(!work.deadline || At(runner.ended[work.id]) <= *work.deadline) << round;
    }
  }
}

TEST(WorkQueueTest, RanksAndTimesAreThoseOfRunningItAll) {
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> length(0.5, 20);
  WorkQueue queue;
  Runner runner(&queue);
  for (WorkId id = 0; id < 300; ++id) {
    runner.Add(Arrives(id, static_cast<double>(id) * 0.3, length(random)));
  }
  std::map<WorkId, int64_t> ranks;
  std::map<WorkId, double> ahead;
  for (WorkId id = 0; id < 300; ++id) {
    ranks[id] = queue.Rank(id);
    ahead[id] = queue.SecondsAhead(id);
  }
  runner.RunToEnd();
  for (size_t place = 0; place < runner.order.size(); ++place) {
    const WorkId id = runner.order[place];
    EXPECT_EQ(ranks[id], static_cast<int64_t>(place));
    EXPECT_NEAR(ahead[id], runner.began[id], 1e-6);
  }
}

TEST(WorkQueueTest, TheFinishThatIsPredictedIsTheOneThatComes) {
  std::mt19937_64 random(12);
  std::uniform_real_distribution<double> length(0.5, 20);
  for (int round = 0; round < 50; ++round) {
    WorkQueue queue;
    Runner runner(&queue);
    for (WorkId id = 1; id <= 20; ++id) {
      const Work work = Arrives(id, 0, length(random));
      runner.Add(round % 2 == 0 ? work : WithDeadline(work, 1000 + length(random)));
    }
    Work last = Arrives(21, 0, length(random));
    if (round % 3 == 0) last = WithDeadline(last, 1000 + length(random));
    const double predicted = queue.PredictedFinish(last, At(0));
    runner.Add(last);
    runner.RunToEnd();
    EXPECT_NEAR(predicted, runner.ended[21], 1e-6);
  }
}

TEST(WorkQueueTest, ALongQueueOfLaterWorkDoesNotMakeADeadlineUnreachable) {
  WorkQueue queue;
  for (WorkId id = 1; id <= 1000; ++id) queue.Add(Arrives(id, 0, 60));
  EXPECT_NEAR(queue.PredictedFinish(WithDeadline(Arrives(1001, 0, 5), 20), At(0)), 5, 1e-6);
  EXPECT_NEAR(queue.PredictedFinish(Arrives(1001, 0, 60), At(0)), 60060, 1e-6);
}

TEST(WorkQueueTest, WhatHasRunIsNotAheadAnyMore) {
  WorkQueue queue;
  queue.Add(Arrives(1, 0, 10));
  queue.Add(Arrives(2, 0, 20));
  EXPECT_DOUBLE_EQ(queue.SecondsAhead(2), 10);
  queue.Update(1, Begun(4));
  EXPECT_DOUBLE_EQ(queue.SecondsAhead(2), 4);
  EXPECT_EQ(queue.Rank(2), 1);
  const auto removed = queue.Remove(1);
  ASSERT_TRUE(removed);
  EXPECT_DOUBLE_EQ(removed->seconds_left, 4);
  EXPECT_DOUBLE_EQ(queue.SecondsAhead(2), 0);
}

TEST(WorkQueueTest, APredictionThatIsNoneStillLeavesAnOrder) {
  WorkQueue queue;
  const double infinite = std::numeric_limits<double>::infinity();
  WorkId id = 1;
  for (double seconds : {std::nan(""), infinite, -infinite, -1.0, 1e300, 5.0}) {
    queue.Add(Arrives(id++, 0, seconds));
    queue.Add(WithDeadline(Arrives(id++, 0, seconds), 100));
    queue.Update(id - 1, Begun(seconds));
    EXPECT_GE(queue.PredictedFinish(Arrives(99, 0, seconds), At(0)), 0);
  }
  std::vector<bool> ranks(12, false);
  for (WorkId one = 1; one < id; ++one) {
    EXPECT_GE(queue.SecondsAhead(one), 0);
    ranks.at(static_cast<size_t>(queue.Rank(one))) = true;
  }
  EXPECT_EQ(std::count(ranks.begin(), ranks.end(), true), 12);
  while (const auto lead = queue.Lead(At(0), true)) queue.Remove(*lead);
  EXPECT_EQ(queue.size(), 0);
}

TEST(WorkQueueTest, SaysWhoseDeadlineHasCome) {
  for (const QueueOptions& options : {QueueOptions{}, kFifo}) {
    WorkQueue queue(options);
    queue.Add(WithDeadline(Arrives(1, 0, 10), 7));
    queue.Add(WithDeadline(Arrives(2, 0, 10), 5));
    queue.Add(WithDeadline(Arrives(3, 0, 10), 30));
    queue.Add(Arrives(4, 0, 10));
    EXPECT_THAT(queue.Expired(At(4.9)), IsEmpty());
    queue.Lead(At(4.9), true);
    EXPECT_THAT(queue.Expired(At(7)), ElementsAre(2, 1));
    queue.Remove(2);
    EXPECT_THAT(queue.Expired(At(7)), ElementsAre(1));
  }
}

// What one decision and what follows from it look at.
uint64_t StepsOfADecision(int64_t queued) {
  WorkQueue queue;
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> length(1, 100);
  for (int64_t id = 0; id < queued; ++id) {
    Work work = Arrives(static_cast<WorkId>(id), static_cast<double>(id) * 1e-3, length(random));
    work.tenant = std::to_string(id % 7);
    work.batch = std::to_string(id % 3);
    queue.Add(id % 2 == 0 ? work : WithDeadline(work, 1e8 + length(random)));
  }
  const uint64_t before = queue.visits();
  for (int i = 0; i < 200; ++i) {
    const WorkId lead = *queue.Lead(At(1000), true);
    const Room room = {.rows = 8, .may_begin = 8, .seconds = [](int64_t rows) {
                         return 1 + 0.1 * static_cast<double>(rows);
                       }};
    const auto sharers = queue.Companions(lead, room, At(1000));
    queue.Rank(lead);
    queue.SecondsAhead(sharers.back());
    queue.PredictedFinish(Arrives(1u << 30, 1000, 10), At(1000));
    queue.Charge("0", 0.1);
    WorkProgress progress = Begun(3);
    progress.resident = i % 2 == 0;
    queue.Update(lead, progress);
  }
  return (queue.visits() - before) / 200;
}

TEST(WorkQueueTest, ADecisionLooksAtHardlyMoreOfAHundredThousandThanOfTen) {
  const uint64_t few = StepsOfADecision(10), many = StepsOfADecision(100000);
  EXPECT_LE(many, 12 * few);  // 17 levels instead of 4, of trees that are not perfect
  EXPECT_LE(many, 3000u);
}

}  // namespace
}  // namespace denoised
