#include "backends/kernels/team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <latch>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace denoised::kernels {
namespace {

// Adds up [0, tasks) with so many workers.
int64_t SumWith(Team& team, int64_t workers, int64_t tasks) {
  TaskShares shares(tasks);
  std::atomic<int64_t> sum = 0;
  team.Run(workers, [&](const Worker& worker) {
    for (int64_t i; (i = shares.Take(worker)) >= 0;) sum += i + 1;
  });
  return sum;
}

TEST(TeamTest, EveryTaskIsDoneOnceHoweverManyWorkersAreAsked) {
  Team team;
  for (int round = 0; round < 300; ++round) {
    for (const int64_t workers : {0, 1, 2, 3, 8, 2}) {
      const int64_t tasks = round % 11;
      ASSERT_EQ(SumWith(team, workers, tasks), tasks * (tasks + 1) / 2) << workers;
    }
    if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // all sleep
  }
}

TEST(TeamTest, WorkersRunAtOnceAndEachIndexIsOneThreads) {
  Team team;
  std::vector<std::set<std::thread::id>> threads(3);
  for (int round = 0; round < 20; ++round) {
    std::latch all_here(3);
    team.Run(3, [&](const Worker& worker) {
      EXPECT_EQ(worker.count, 3);
      threads[worker.index].insert(std::this_thread::get_id());
      all_here.arrive_and_wait();
    });
  }
  for (const auto& one : threads) EXPECT_EQ(one.size(), 1U);
  EXPECT_EQ(*threads[0].begin(), std::this_thread::get_id());
  EXPECT_NE(threads[1], threads[2]);
}

TEST(TeamTest, AHelperThatIsLateIsNotWaitedForAndDoesNotComeLater) {
  Team team;
  SumWith(team, 2, 2);
  int64_t missed = 0;
  for (int round = 0; round < 2000; ++round) {
    std::atomic<int> inside = 0, came = 0;
    team.Run(2, [&](const Worker&) {
      ++inside;
      ++came;
      --inside;
    });
    ASSERT_EQ(inside, 0);
    const int at_the_end = came;
    if (at_the_end == 1) ++missed;
    if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_EQ(came, at_the_end);
  }
  EXPECT_GT(missed, 0) << "work that ends at once, beside a helper that sleeps";
}

TEST(TeamTest, WhatAWorkerThrowsReachesTheOwnerAndTheTeamGoesOn) {
  Team team;
  for (const int64_t bad : {0, 1}) {
    std::latch both_here(2);
    std::string said;
    try {
      team.Run(2, [&](const Worker& worker) {
        both_here.arrive_and_wait();
        if (worker.index == bad) throw std::runtime_error(std::to_string(bad));
      });
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    EXPECT_EQ(said, std::to_string(bad));
    EXPECT_EQ(SumWith(team, 2, 100), 5050);
  }
}

TEST(TeamTest, ALoopWithinALoopIsItsThreadsAlone) {
  Team team;
  std::atomic<int> inner = 0;
  std::latch both_here(2);
  team.Run(2, [&](const Worker&) {
    both_here.arrive_and_wait();
    const auto outer = std::this_thread::get_id();
    OwnTeam().Run(4, [&](const Worker& worker) {
      EXPECT_EQ(worker.count, 1);
      EXPECT_EQ(std::this_thread::get_id(), outer);
      ++inner;
    });
  });
  EXPECT_EQ(inner, 2);
}

TEST(TeamTest, ThreadsHaveTeamsOfTheirOwnThatEndWithThem) {
  std::vector<std::thread> owners;
  for (int64_t owner = 0; owner < 4; ++owner) {
    owners.emplace_back([owner] {
      for (int round = 0; round < 200; ++round) {
        ASSERT_EQ(SumWith(OwnTeam(), 3, owner), owner * (owner + 1) / 2);
      }
    });
  }
  for (std::thread& owner : owners) owner.join();
}

}  // namespace
}  // namespace denoised::kernels
