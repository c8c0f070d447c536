// Who shares a forward.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "runtime/engine/work_queue.h"
#include "tests/runtime/queue_runner.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

Work Shares(Work work, std::string batch, int64_t rows = 1) {
  work.batch = std::move(batch);
  work.rows = rows;
  return work;
}

Work Resident(Work work) {
  work.resident = true;
  return work;
}

Room Rows(int64_t rows, int64_t may_begin = 100) {
  Room room;
  room.rows = rows;
  room.may_begin = may_begin;
  return room;
}

// A forward of r rows takes call + r * row.
Room Costs(double call, double row, int64_t rows = 16) {
  Room room = Rows(rows);
  room.seconds = [=](int64_t r) { return call + row * static_cast<double>(r); };
  return room;
}

TEST(CompanionsTest, AreTheNextOfTheSameBatchInOrder) {
  WorkQueue queue;
  queue.Add(Shares(Arrives(1, 0, 10), "x"));
  queue.Add(Shares(Arrives(2, 0, 30), "x"));
  queue.Add(Shares(Arrives(3, 0, 20), "x"));
  queue.Add(Shares(Arrives(4, 0, 12), "y"));
  queue.Add(Arrives(5, 0, 11));
  queue.Add(Arrives(6, 0, 11));
  EXPECT_THAT(queue.Companions(1, Rows(16), At(0)), ElementsAre(1, 3, 2));
  EXPECT_THAT(queue.Companions(4, Rows(16), At(0)), ElementsAre(4));
  EXPECT_THAT(queue.Companions(5, Rows(16), At(0)), ElementsAre(5));
}

TEST(CompanionsTest, TakeNoMoreRowsThanThereIsRoomFor) {
  WorkQueue queue;
  queue.Add(Shares(Arrives(1, 0, 1), "x", 2));
  queue.Add(Shares(Arrives(2, 0, 2), "x", 4));
  queue.Add(Shares(Arrives(3, 0, 3), "x", 1));
  EXPECT_THAT(queue.Companions(1, Rows(7), At(0)), ElementsAre(1, 2, 3));
  EXPECT_THAT(queue.Companions(1, Rows(6), At(0)), ElementsAre(1, 2));
  EXPECT_THAT(queue.Companions(1, Rows(3), At(0)), ElementsAre(1, 3));  // 2 has too many
  EXPECT_THAT(queue.Companions(1, Rows(1), At(0)), ElementsAre(1));     // the lead always runs
}

TEST(CompanionsTest, BeginOnlyWhereSoManyMay) {
  WorkQueue queue;
  queue.Add(Resident(Shares(Arrives(1, 0, 1), "x")));
  queue.Add(Shares(Arrives(2, 0, 2), "x"));
  queue.Add(Resident(Shares(Arrives(3, 0, 3), "x")));
  queue.Add(Shares(Arrives(4, 0, 4), "x"));
  EXPECT_THAT(queue.Companions(1, Rows(16, 0), At(0)), ElementsAre(1, 3));
  EXPECT_THAT(queue.Companions(1, Rows(16, 1), At(0)), ElementsAre(1, 2, 3));
  EXPECT_THAT(queue.Companions(1, Rows(16, 2), At(0)), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(queue.Companions(2, Rows(16, 1), At(0)), ElementsAre(2, 1, 3));  // it is that one
}

TEST(CompanionsTest, AreNoneWhereBatchingIsOff) {
  WorkQueue queue({.batching = false});
  queue.Add(Shares(Arrives(1, 0, 10), "x"));
  queue.Add(Shares(Arrives(2, 0, 10), "x"));
  EXPECT_THAT(queue.Companions(1, Rows(16), At(0)), ElementsAre(1));
}

TEST(CompanionsTest, AreThoseThatCameNextWhereTheFirstIsServedFirst) {
  WorkQueue queue({.policy = QueueOptions::Policy::kFifo});
  for (WorkId id = 1; id <= 4; ++id) queue.Add(Shares(Arrives(id, 0, 10.0 / id), "x"));
  EXPECT_THAT(queue.Companions(1, Costs(1, 1, 3), At(0)), ElementsAre(1, 2, 3));
}

TEST(CompanionsTest, FollowAWorkThatChangesItsBatchOrLeaves) {
  WorkQueue queue;
  queue.Add(Shares(Arrives(1, 0, 1), "x"));
  queue.Add(Shares(Arrives(2, 0, 2), "x"));
  queue.Add(Shares(Arrives(3, 0, 3), "x"));
  queue.Update(2, Shares(Arrives(2, 0, 2), "y"));
  EXPECT_THAT(queue.Companions(1, Rows(16), At(0)), ElementsAre(1, 3));
  queue.Remove(3);
  EXPECT_THAT(queue.Companions(1, Rows(16), At(0)), ElementsAre(1));
}

TEST(CompanionsTest, AllComeWhereNobodyIsLate) {
  WorkQueue queue;
  for (WorkId id = 1; id <= 8; ++id) queue.Add(Shares(Arrives(id, 0, 10), "x"));
  EXPECT_THAT(queue.Companions(1, Costs(0.1, 0.1), At(0)), SizeIs(8));
}

TEST(CompanionsTest, NeverMakeADeadlineMissedThatIsMetWithout) {
  WorkQueue queue;
  queue.Add(WithDeadline(Shares(Arrives(1, 0, 10), "x"), 10.05));
  queue.Add(WithDeadline(Shares(Arrives(2, 0, 10), "x"), 100));
  EXPECT_THAT(queue.Companions(1, Costs(0.1, 0.1), At(0)), ElementsAre(1));
  EXPECT_THAT(queue.Companions(1, Costs(0.3, 0.01), At(0)), ElementsAre(1, 2));
  WorkQueue loose;
  loose.Add(WithDeadline(Shares(Arrives(1, 0, 10), "x"), 40));
  loose.Add(WithDeadline(Shares(Arrives(2, 0, 10), "x"), 100));
  EXPECT_THAT(loose.Companions(1, Costs(0.3, 0.1), At(0)), ElementsAre(1, 2));
}

TEST(CompanionsTest, WithDeadlinesComeWhereThoseBehindGainTwiceWhatThoseBeforeLose) {
  WorkQueue queue;
  for (WorkId id = 1; id <= 9; ++id) {
    queue.Add(WithDeadline(Shares(Arrives(id, 0, 1), "x"), static_cast<double>(id) + 0.3));
  }
  // Of nine the n-th comes where saved * (10 - n) >= 2 * extra * (n - 1).
  EXPECT_THAT(queue.Companions(1, Costs(0.11, 0.1), At(0)), SizeIs(4));
  EXPECT_THAT(queue.Companions(1, Costs(0.1, 0.01), At(0)), SizeIs(8));
  EXPECT_THAT(queue.Companions(1, Costs(0.01, 0.1), At(0)), SizeIs(1));
}

TEST(CompanionsTest, ComeAlongWhereDeadlinesAreFar) {
  WorkQueue queue;
  for (WorkId id = 1; id <= 8; ++id) {
    queue.Add(WithDeadline(Shares(Arrives(id, 0, 1), "x"), 1000 + static_cast<double>(id)));
  }
  EXPECT_THAT(queue.Companions(1, Costs(0.01, 0.1), At(0)), SizeIs(8));
}

TEST(CompanionsTest, WhoseDeadlineIsGivenUpDelaysNobody) {
  WorkQueue queue;
  queue.Add(WithDeadline(Shares(Arrives(1, 0, 10), "x"), 100));
  queue.Add(WithDeadline(Shares(Arrives(2, 0, 90), "x"), 50));
  EXPECT_EQ(queue.Lead(At(0), true), WorkId{1});
  EXPECT_THAT(queue.Companions(1, Costs(0.2, 0.1), At(0)), ElementsAre(1));
  EXPECT_THAT(queue.Companions(1, Costs(0.2, 0.0), At(0)), ElementsAre(1, 2));
}

TEST(CompanionsTest, AreNamedBeforeTheyAreAtTheirStepWhereThereIsTimeToBringThemThere) {
  WorkQueue queue;
  queue.Add(WithDeadline(Shares(Arrives(1, 0, 10), "x"), 13));
  Work other = WithDeadline(Shares(Arrives(2, 0, 20), "x"), 100);
  other.seconds_to_step = 1;
  queue.Add(other);
  EXPECT_THAT(queue.Companions(1, Costs(0.3, 0.1), At(0)), ElementsAre(1, 2));
  other.seconds_to_step = 5;
  queue.Update(2, other);
  EXPECT_THAT(queue.Companions(1, Costs(0.3, 0.1), At(0)), ElementsAre(1));
}

TEST(CompanionsTest, AFewThatDoNotFitEndTheSearch) {
  WorkQueue queue;
  queue.Add(Shares(Arrives(0, 0, 1), "x"));
  for (WorkId id = 1; id <= 1000; ++id) queue.Add(Shares(Arrives(id, 0, 10), "x", 9));
  const uint64_t before = queue.visits();
  EXPECT_THAT(queue.Companions(0, Costs(0.1, 0.1, 4), At(0)), ElementsAre(0));
  EXPECT_LE(queue.visits() - before, 2000u);
}

}  // namespace
}  // namespace denoised
