#include "runtime/engine/order_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace denoised {
namespace {

// Everything the tree says, counted out. Whole numbers, so that sums are exact in any order.
class CountedOut {
 public:
  void Insert(const OrderTree::Entry& entry) {
    const auto at = std::find_if(entries.begin(), entries.end(),
                                 [&](const auto& other) { return entry.key < other.key; });
    entries.insert(at, entry);
  }
  OrderTree::Sums Before(const OrderKey& key) const {
    OrderTree::Sums sums;
    for (const auto& entry : entries) {
      if (entry.key < key) sums = {sums.count + 1, sums.seconds + entry.seconds};
    }
    return sums;
  }
  OrderTree::Sums Within(double seconds) const {
    OrderTree::Sums sums;
    for (const auto& entry : entries) {
      if (sums.seconds + entry.seconds > seconds) break;
      sums = {sums.count + 1, sums.seconds + entry.seconds};
    }
    return sums;
  }
  std::optional<OrderKey> FirstLate(double now) const {
    for (const auto& entry : entries) {
      now += entry.seconds;
      if (entry.bound && now > entry.key.due) return entry.key;
    }
    return std::nullopt;
  }
  double HeaviestUpTo(const OrderKey& key) const {
    double heaviest = -1;
    for (const auto& entry : entries) {
      if (entry.bound && entry.key <= key) heaviest = std::max(heaviest, entry.weight);
    }
    return heaviest;
  }
  OrderTree::Slack SlackBefore(const OrderKey& key, double now) const {
    const double infinite = std::numeric_limits<double>::infinity();
    OrderTree::Slack slack = {infinite, infinite};
    for (const auto& entry : entries) {
      if (!(entry.key < key)) break;
      now += entry.seconds;
      slack.all = std::min(slack.all, entry.key.due - now);
      if (entry.bound) slack.bound = std::min(slack.bound, entry.key.due - now);
    }
    return slack;
  }

  std::vector<OrderTree::Entry> entries;
};

class OrderTreeTest : public testing::Test {
 protected:
  double Whole(int from, int to) { return std::uniform_int_distribution<int>(from, to)(random_); }

  OrderTree::Entry Anything(WorkId id) {
    return {.key = {Whole(0, 60), id},
            .seconds = Whole(0, 8),
            .bound = Whole(0, 1) > 0,
            .weight = Whole(0, 30)};
  }

  void ChangeSomething(WorkId id) {
    const int what = static_cast<int>(Whole(0, 3));
    if (what < 2 || counted_.entries.empty()) {
      const OrderTree::Entry entry = Anything(id);
      tree_.Insert(entry);
      counted_.Insert(entry);
      return;
    }
    const auto at =
        counted_.entries.begin() +
        static_cast<std::ptrdiff_t>(Whole(0, static_cast<int>(counted_.entries.size()) - 1));
    if (what == 2) {
      EXPECT_TRUE(tree_.Erase(at->key));
      EXPECT_FALSE(tree_.Erase(at->key));
      counted_.entries.erase(at);
    } else {
      at->seconds = Whole(0, 8);
      at->weight = Whole(0, 30);
      tree_.Change(at->key, at->seconds, at->weight);
    }
  }

  void ExpectEqualTo(const OrderKey& key, double now) {
    EXPECT_EQ(tree_.Before(key).count, counted_.Before(key).count);
    EXPECT_EQ(tree_.Before(key).seconds, counted_.Before(key).seconds);
    const double within = Whole(-5, 200);
    EXPECT_EQ(tree_.Within(within).count, counted_.Within(within).count);
    EXPECT_EQ(tree_.Within(within).seconds, counted_.Within(within).seconds);
    EXPECT_EQ(tree_.FirstLate(now), counted_.FirstLate(now));
    EXPECT_EQ(tree_.BeforeFrom(key, now).slack.all, counted_.SlackBefore(key, now).all);
    EXPECT_EQ(tree_.BeforeFrom(key, now).slack.bound, counted_.SlackBefore(key, now).bound);
    const auto heaviest = tree_.HeaviestUpTo(key);
    EXPECT_EQ(heaviest.has_value(), counted_.HeaviestUpTo(key) >= 0);
    if (!heaviest) return;
    const auto at = std::find_if(counted_.entries.begin(), counted_.entries.end(),
                                 [&](const auto& entry) { return entry.key == *heaviest; });
    EXPECT_TRUE(at->bound && at->key <= key);
    EXPECT_EQ(at->weight, counted_.HeaviestUpTo(key));
  }

  std::mt19937_64 random_{7};
  OrderTree tree_;
  CountedOut counted_;
};

TEST_F(OrderTreeTest, SaysWhatCountingOutSays) {
  for (WorkId id = 0; id < 2000 && !HasFailure(); ++id) {
    ChangeSomething(id);
    const OrderKey key = {Whole(-1, 61), static_cast<WorkId>(Whole(0, 2000))};
    ExpectEqualTo(key, Whole(-300, 30));
    if (counted_.entries.empty()) continue;
    EXPECT_EQ(tree_.First(), counted_.entries.front().key);
    ExpectEqualTo(counted_.entries[counted_.entries.size() / 2].key, Whole(-300, 30));
  }
}

TEST_F(OrderTreeTest, AnEmptyOneHasNothing) {
  EXPECT_TRUE(tree_.empty());
  EXPECT_EQ(tree_.First(), std::nullopt);
  EXPECT_EQ(tree_.FirstLate(1e9), std::nullopt);
  EXPECT_EQ(tree_.HeaviestUpTo({1e9, 9}), std::nullopt);
  EXPECT_EQ(tree_.total().count, 0);
  EXPECT_TRUE(std::isinf(tree_.BeforeFrom({1e9, 9}, 0).slack.all));
}

// Also of entries that come in order, which would make a chain of a tree that is not balanced.
TEST_F(OrderTreeTest, LooksAtAFewNodesOfAHundredThousand) {
  for (WorkId id = 0; id < 100000; ++id) {
    tree_.Insert({.key = {static_cast<double>(id) * 10, id}, .seconds = 1, .bound = true});
  }
  const uint64_t before = tree_.visits();
  for (WorkId id = 0; id < 1000; ++id) {
    const OrderKey key = {static_cast<double>(id * 97) * 10, id * 97};
    tree_.Change(key, 2, 2);
    tree_.Before(key);
    tree_.BeforeFrom(key, 0);
    tree_.FirstLate(0);
  }
  EXPECT_LE((tree_.visits() - before) / 1000, 250u);
}

}  // namespace
}  // namespace denoised
