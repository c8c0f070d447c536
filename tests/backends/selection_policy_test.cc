// The force API: FastVideo's global_force_attn_backend and its context manager, and what ours adds.
#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>
#include <vector>

#include "backends/error.h"
#include "backends/selector.h"

namespace denoised {
namespace {

using std::chrono::milliseconds;

constexpr AttnBackend kX = AttnBackend::kTorchSdpa;
constexpr AttnBackend kY = AttnBackend::kFlashAttn;

// A clock that moves when told.
struct ManualClock {
  std::chrono::steady_clock::time_point now{};
  SelectionPolicy::Clock Read() {
    return [this] { return now; };
  }
};

TEST(SelectionPolicy, StartsWithoutAForce) {
  const SelectionPolicy policy;
  EXPECT_FALSE(policy.forced().has_value());
  EXPECT_TRUE(policy.List().empty());
}

TEST(SelectionPolicy, TheNewestForceWinsAndTheOlderOneReturns) {
  SelectionPolicy policy;
  policy.AddForce(kX, std::nullopt, "first", "me");
  const Force newer = policy.AddForce(kY, std::nullopt, "second", "me");
  EXPECT_EQ(policy.forced(), kY);
  EXPECT_TRUE(policy.Release(newer.id));
  EXPECT_EQ(policy.forced(), kX);
}

TEST(SelectionPolicy, ReleasingTwiceOrByAnUnknownIdSaysSo) {
  SelectionPolicy policy;
  const Force force = policy.AddForce(kX, std::nullopt, "", "");
  EXPECT_TRUE(policy.Release(force.id));
  EXPECT_FALSE(policy.Release(force.id));
  EXPECT_FALSE(policy.Release("force-99"));
}

TEST(SelectionPolicy, ListsWhatIsAliveNewestFirst) {
  SelectionPolicy policy;
  policy.AddForce(kX, std::nullopt, "why", "peer");
  policy.AddForce(kY, milliseconds(5000), "", "");
  const std::vector<Force> forces = policy.List();
  ASSERT_EQ(forces.size(), 2u);
  EXPECT_EQ(forces[0].backend, kY);
  EXPECT_TRUE(forces[0].ends_at.has_value());
  EXPECT_EQ(forces[1].reason, "why");
  EXPECT_EQ(forces[1].holder, "peer");
  EXPECT_NE(forces[0].id, forces[1].id);
}

TEST(SelectionPolicy, AForceEndsWhenItsTimeIsOver) {
  ManualClock clock;
  SelectionPolicy policy(std::nullopt, clock.Read());
  policy.AddForce(kX, milliseconds(100), "", "");
  clock.now += milliseconds(99);
  EXPECT_EQ(policy.forced(), kX);
  clock.now += milliseconds(1);
  EXPECT_FALSE(policy.forced().has_value());
  EXPECT_TRUE(policy.List().empty());
}

TEST(SelectionPolicy, TheVersionMovesOnEveryChangeAndOnExpiry) {
  ManualClock clock;
  SelectionPolicy policy(std::nullopt, clock.Read());
  const uint64_t start = policy.version();
  EXPECT_EQ(policy.version(), start);
  policy.AddForce(kX, milliseconds(100), "", "");
  const uint64_t forced = policy.version();
  EXPECT_GT(forced, start);
  clock.now += milliseconds(50);
  EXPECT_EQ(policy.version(), forced);
  clock.now += milliseconds(50);
  const uint64_t expired = policy.version();
  EXPECT_GT(expired, forced);
  EXPECT_EQ(policy.version(), expired);
  const Force force = policy.AddForce(kY, std::nullopt, "", "");
  const uint64_t again = policy.version();
  policy.Release(force.id);
  EXPECT_GT(policy.version(), again);
}

TEST(SelectionPolicy, AnOlderForceMayOutliveANewerOne) {
  ManualClock clock;
  SelectionPolicy policy(std::nullopt, clock.Read());
  policy.AddForce(kX, milliseconds(300), "", "");
  policy.AddForce(kY, milliseconds(100), "", "");
  clock.now += milliseconds(200);
  EXPECT_EQ(policy.forced(), kX);
  clock.now += milliseconds(100);
  EXPECT_FALSE(policy.forced().has_value());
}

TEST(SelectionPolicy, ATimeToLiveOutOfRangeIsRefusedByName) {
  SelectionPolicy policy;
  for (milliseconds ttl : {milliseconds(0), milliseconds(-1), milliseconds::max()}) {
    try {
      policy.AddForce(kX, ttl, "", "");
      ADD_FAILURE() << ttl.count();
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "ttl");
    }
  }
  EXPECT_TRUE(policy.List().empty());
}

TEST(SelectionPolicy, AppliesForceAndEnvironmentToAJobsWishes) {
  SelectionPolicy policy(kY);
  SelectionWishes wishes;
  wishes.request = kX;
  wishes.force = kX;
  wishes.force_id = "stale";
  policy.Apply(&wishes);
  EXPECT_FALSE(wishes.force.has_value());
  EXPECT_EQ(wishes.force_id, "");
  EXPECT_EQ(wishes.environment, kY);
  EXPECT_EQ(wishes.request, kX);
  const Force force = policy.AddForce(kX, std::nullopt, "", "");
  policy.Apply(&wishes);
  EXPECT_EQ(wishes.force, kX);
  EXPECT_EQ(wishes.force_id, force.id);
}

// Row g of the selector's table: global_force_attn_backend(None) inside of a force.
TEST(ScopedForce, G_AnEmptyForceLiftsTheOuterOneForItsScope) {
  SelectionPolicy policy;
  const ScopedForce outer(policy, kX);
  {
    const ScopedForce lifted(policy, std::nullopt);
    EXPECT_FALSE(policy.forced().has_value());
    EXPECT_EQ(policy.List().size(), 1u);
    {
      const ScopedForce inner(policy, kY);
      EXPECT_EQ(policy.forced(), kY);
    }
    EXPECT_FALSE(policy.forced().has_value());
  }
  EXPECT_EQ(policy.forced(), kX);
}

TEST(ScopedForce, G_ClearEndsEveryForce) {
  SelectionPolicy policy;
  const ScopedForce outer(policy, kX);
  policy.Clear();
  EXPECT_FALSE(policy.forced().has_value());
}

TEST(ScopedForce, H_AnExceptionInTheScopeRestoresTheOuterForce) {
  SelectionPolicy policy;
  const ScopedForce outer(policy, kX);
  try {
    const ScopedForce inner(policy, kY);
    throw std::runtime_error("in the body");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(policy.forced(), kX);
}

TEST(ScopedForce, I_NestedScopesUnwindInOrder) {
  SelectionPolicy policy;
  {
    const ScopedForce x(policy, kX);
    {
      const ScopedForce y(policy, kY);
      EXPECT_EQ(policy.forced(), kY);
    }
    EXPECT_EQ(policy.forced(), kX);
  }
  EXPECT_FALSE(policy.forced().has_value());
}

// FastVideo's trap: two threads that interleaved enter and exit left the wrong value behind.
TEST(ScopedForce, MustNotLeaveAForceBehindWhenThreadsInterleave) {
  SelectionPolicy policy;
  std::vector<std::thread> threads;
  for (AttnBackend id : {kX, kY, AttnBackend::kReference}) {
    threads.emplace_back([&policy, id] {
      for (int i = 0; i < 2000; ++i) {
        const ScopedForce force(policy, id);
        EXPECT_TRUE(policy.forced().has_value());
        policy.version();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(policy.forced().has_value());
  EXPECT_TRUE(policy.List().empty());
}

}  // namespace
}  // namespace denoised
