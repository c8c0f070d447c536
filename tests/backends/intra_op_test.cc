#include "backends/intra_op.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <latch>
#include <optional>
#include <thread>
#include <vector>

namespace denoised {
namespace {

class IntraOpTest : public testing::Test {
 protected:
  void TearDown() override { SetIntraOpThreads(before_); }

 private:
  const int before_ = IntraOpThreads();
};

TEST_F(IntraOpTest, AsManyWorkersAsThreadsWereAskedForAndNoMoreThanTasks) {
  for (const int threads : {1, 3}) {
    SetIntraOpThreads(threads);
    for (const int64_t tasks : {1, 2, 100}) {
      const int64_t workers = std::min<int64_t>(threads, tasks);
      std::latch all_here(workers);
      RunOnIntraOpThreads(tasks, [&](const kernels::Worker& worker) {
        EXPECT_EQ(worker.count, workers);
        all_here.arrive_and_wait();  // or this would not end
      });
    }
  }
}

TEST_F(IntraOpTest, PartsCoverTheRangeOnceAndAreOfTheGrain) {
  SetIntraOpThreads(2);
  for (const bool libtorch : {false, true}) {
    std::optional<ScopedLibTorchThreads> threads;
    if (libtorch) threads.emplace();
    for (const int64_t count : {0, 1, 7, 8, 9, 96, 1000, 100003}) {
      for (const int64_t grain : {1, 8, 64, 5000}) {
        std::vector<std::atomic<int>> seen(count);
        std::atomic<int64_t> parts = 0;
        ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          ++parts;
          for (int64_t i = begin; i < end; ++i) ++seen[i];
        });
        for (const auto& times : seen) ASSERT_EQ(times, 1) << count << " by " << grain;
        EXPECT_LE(parts, (count + grain - 1) / grain);
        EXPECT_EQ(parts > 1, count > grain);
      }
    }
  }
}

// LibTorch's operations have threads within a scope and for a while behind it, and else none.
TEST_F(IntraOpTest, LibTorchHasTheThreadsWithinAScopeAndGivesThemBackAWhileLater) {
  std::thread([] {
    SetIntraOpThreads(3);
    EXPECT_EQ(IntraOpThreads(), 3);
    EXPECT_EQ(at::get_num_threads(), 1);
    const auto loop = [] { ParallelFor(2, 1, [](int64_t, int64_t) {}); };
    {
      const ScopedLibTorchThreads outer;
      EXPECT_EQ(at::get_num_threads(), 3);
      { const ScopedLibTorchThreads inner; }
      std::this_thread::sleep_for(std::chrono::milliseconds(150));
      loop();
      EXPECT_EQ(at::get_num_threads(), 3) << "an inner scope's end gave them back";
    }
    const auto left = std::chrono::steady_clock::now();
    { const ScopedLibTorchThreads again; }
    while (at::get_num_threads() > 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      loop();
    }
    EXPECT_GE(std::chrono::steady_clock::now() - left, std::chrono::milliseconds(100));
    EXPECT_EQ(IntraOpThreads(), 3);
  }).join();
}

}  // namespace
}  // namespace denoised
