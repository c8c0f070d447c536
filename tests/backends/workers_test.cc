#include "backends/kernels/workers.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace denoised::kernels {
namespace {

TEST(TaskSharesTest, AWorkerTakesItsOwnShareInOrderAndThenWhatOthersLeft) {
  TaskShares tasks(10);
  const Worker first{0, 3}, second{1, 3}, third{2, 3};
  EXPECT_EQ(tasks.Take(second), 3);
  EXPECT_EQ(tasks.Take(first), 0);
  EXPECT_EQ(tasks.Take(second), 4);
  EXPECT_EQ(tasks.Take(second), 5);
  EXPECT_EQ(tasks.Take(second), 6) << "of the next one's";
  EXPECT_EQ(tasks.Take(third), 7);
  for (const int64_t task : {8, 9, 1, 2, -1, -1}) EXPECT_EQ(tasks.Take(third), task);
  EXPECT_EQ(tasks.Take(first), -1);
}

TEST(TaskSharesTest, OneWorkerOfManyTakesAll) {
  for (const int64_t count : {1, 2, 64, 65, 1000}) {
    TaskShares tasks(130);
    std::vector<int> taken(130);
    for (int64_t i; (i = tasks.Take({count - 1, count})) >= 0;) ++taken[i];
    EXPECT_EQ(taken, std::vector<int>(130, 1)) << count;
  }
}

TEST(TaskSharesTest, ManyThreadsTakeEachTaskOnce) {
  for (const int64_t count : {2, 7, 70}) {
    for (const int64_t all : {0, 1, 5, 4099}) {
      TaskShares tasks(all);
      std::vector<std::atomic<int>> taken(all);
      std::vector<std::jthread> threads;
      for (int64_t index = 0; index < count; ++index) {
        threads.emplace_back([&, index] {
          for (int64_t i; (i = tasks.Take({index, count})) >= 0;) ++taken[i];
        });
      }
      threads.clear();
      for (const auto& times : taken) EXPECT_EQ(times, 1);
    }
  }
}

}  // namespace
}  // namespace denoised::kernels
