#include "server/work_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace denoised {
namespace {

TEST(WorkPool, RunsEverythingThatItTook) {
  std::atomic<int> ran{0};
  {
    WorkPool pool(2, 1000, 1000);
    for (int i = 0; i < 500; ++i) EXPECT_TRUE(pool.Post(1, [&] { ++ran; }));
  }
  EXPECT_EQ(ran, 500);
}

TEST(WorkPool, RefusesWhatFindsNoRoomBesideWhatWaitsAndRuns) {
  std::promise<void> go;
  const std::shared_future<void> gate = go.get_future().share();
  std::promise<void> begun;
  WorkPool pool(1, 2, 100);
  ASSERT_TRUE(pool.Post(30, [&] {
    begun.set_value();
    gate.wait();
  }));
  begun.get_future().wait();
  EXPECT_TRUE(pool.Post(60, [] {}));
  EXPECT_FALSE(pool.Post(40, [] { ADD_FAILURE(); })) << "30 bytes run and 60 wait";
  EXPECT_TRUE(pool.Post(10, [] {}));
  EXPECT_FALSE(pool.Post(0, [] { ADD_FAILURE(); })) << "two tasks wait";
  go.set_value();
}

TEST(WorkPool, WhatIsLargerThanAllRunsAlone) {
  std::promise<void> ran;
  WorkPool pool(1, 2, 100);
  EXPECT_TRUE(pool.Post(1000, [&] { ran.set_value(); }));
  ran.get_future().wait();
}

TEST(WorkPool, WhatGoesOnElsewhereKeepsItsRoom) {
  WorkPool pool(1, 2, 100);
  std::promise<WorkPool::Room> room;
  ASSERT_TRUE(pool.Post(60, [&](WorkPool::Room mine) { room.set_value(std::move(mine)); }));
  WorkPool::Room elsewhere = room.get_future().get();
  EXPECT_FALSE(pool.Post(60, [] { ADD_FAILURE(); }));
  elsewhere.reset();
  std::promise<void> ran;
  EXPECT_TRUE(pool.Post(60, [&] { ran.set_value(); }));
  ran.get_future().wait();
}

}  // namespace
}  // namespace denoised
