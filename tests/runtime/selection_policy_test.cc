// The force API: FastVideo's global_force_attn_backend and its context manager, and what ours adds.
#include "runtime/selection_policy.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <stdexcept>
#include <thread>
#include <vector>

#include "backends/error.h"
#include "runtime/attention/place_wishes.h"
#include "tests/runtime/leases.h"

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
  AddForce(policy, kX, std::nullopt, "first", "me");
  const Lease newer = AddForce(policy, kY, std::nullopt, "second", "me");
  EXPECT_EQ(policy.forced(), kY);
  EXPECT_TRUE(policy.Release(newer.id));
  EXPECT_EQ(policy.forced(), kX);
}

TEST(SelectionPolicy, ReleasingTwiceOrByAnUnknownIdSaysSo) {
  SelectionPolicy policy;
  const Lease force = AddForce(policy, kX, std::nullopt, "", "");
  EXPECT_TRUE(policy.Release(force.id));
  EXPECT_FALSE(policy.Release(force.id));
  EXPECT_FALSE(policy.Release("force-99"));
}

TEST(SelectionPolicy, ListsWhatIsAliveNewestFirst) {
  SelectionPolicy policy;
  AddForce(policy, kX, std::nullopt, "why", "peer");
  AddForce(policy, kY, milliseconds(5000), "", "");
  const std::vector<Lease> forces = policy.List();
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
  AddForce(policy, kX, milliseconds(100), "", "");
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
  AddForce(policy, kX, milliseconds(100), "", "");
  const uint64_t forced = policy.version();
  EXPECT_GT(forced, start);
  clock.now += milliseconds(50);
  EXPECT_EQ(policy.version(), forced);
  clock.now += milliseconds(50);
  const uint64_t expired = policy.version();
  EXPECT_GT(expired, forced);
  EXPECT_EQ(policy.version(), expired);
  const Lease force = AddForce(policy, kY, std::nullopt, "", "");
  const uint64_t again = policy.version();
  policy.Release(force.id);
  EXPECT_GT(policy.version(), again);
}

TEST(SelectionPolicy, AnOlderForceMayOutliveANewerOne) {
  ManualClock clock;
  SelectionPolicy policy(std::nullopt, clock.Read());
  AddForce(policy, kX, milliseconds(300), "", "");
  AddForce(policy, kY, milliseconds(100), "", "");
  clock.now += milliseconds(200);
  EXPECT_EQ(policy.forced(), kX);
  clock.now += milliseconds(100);
  EXPECT_FALSE(policy.forced().has_value());
}

TEST(SelectionPolicy, ATimeToLiveOutOfRangeIsRefusedByName) {
  SelectionPolicy policy;
  for (milliseconds ttl : {milliseconds(0), milliseconds(-1), milliseconds::max()}) {
    try {
      AddForce(policy, kX, ttl, "", "");
      ADD_FAILURE() << ttl.count();
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "ttl");
    }
  }
  EXPECT_TRUE(policy.List().empty());
}

// What holds everywhere, strongest first.
std::vector<Wish> WishesNow(const SelectionPolicy& policy, const SelectionSubject& subject) {
  const auto scoped = policy.WishesFor(subject, *policy.leases());
  return WishesAt(scoped, AttentionRole::kSelf, 1, {0, std::nullopt}).by_layers.at(0).wishes;
}

std::string Short(const std::vector<Wish>& wishes) {
  std::string text;
  for (const Wish& wish : wishes) {
    text += std::string(SelectionSourceName(wish.source)) + " " +
            std::string(AttnBackendName(wish.backend)) + wish.parameters + "; ";
  }
  return text;
}

TEST(SelectionPolicy, WishesComeStrongestFirst) {
  SelectionPolicy policy(kY);
  SelectionSubject subject;
  subject.request = Wish{SelectionSource::kRequest, kX, "", ""};
  subject.model_default = Wish{SelectionSource::kModelDefault, AttnBackend::kReference, "", ""};
  EXPECT_EQ(Short(WishesNow(policy, subject)),
            "request TORCH_SDPA; environment FLASH_ATTN; model_default REFERENCE; ");
  AddForce(policy, kX, std::nullopt, "", "");
  const Lease newest = AddForce(policy, kY, std::nullopt, "", "");
  EXPECT_EQ(Short(WishesNow(policy, {})),
            "force FLASH_ATTN; force TORCH_SDPA; environment FLASH_ATTN; ");
  EXPECT_EQ(WishesNow(policy, {})[0].lease_id, newest.id);
  const ScopedForce lifted(policy, std::nullopt);
  EXPECT_EQ(Short(WishesNow(policy, {})), "environment FLASH_ATTN; ");
}

// Naming a backend keeps what is set for it, giving parameters replaces that, {} asks for none.
TEST(SelectionPolicy, AWishWithoutParametersHasThoseOfTheNextWeakerForTheSameBackend) {
  struct Row {
    const char *force, *request, *model_default;  // of one backend
    const char *forced, *requested;               // what they come to
  };
  for (const Row& row :
       {Row{"", "", R"({"m":1})", R"({"m":1})", R"({"m":1})"},
        Row{"", R"({"r":1})", R"({"m":1})", R"({"r":1})", R"({"r":1})"},
        Row{R"({"f":1})", "", R"({"m":1})", R"({"f":1})", R"({"m":1})"},
        Row{"", "{}", R"({"m":1})", "{}", "{}"}, Row{"{}", R"({"r":1})", "", "{}", R"({"r":1})"},
        Row{"", "", "", "", ""}}) {
    SelectionPolicy policy;
    AddForce(policy, kX, std::nullopt, "", "", row.force);
    AddForce(policy, kY, std::nullopt, "", "");
    SelectionSubject subject;
    subject.request = Wish{SelectionSource::kRequest, kX, row.request, ""};
    subject.model_default = Wish{SelectionSource::kModelDefault, kX, row.model_default, ""};
    const auto wishes = WishesNow(policy, subject);
    ASSERT_EQ(wishes.size(), 4u);
    EXPECT_EQ(wishes[0].parameters, "") << "another backend's are not its own";
    EXPECT_EQ(wishes[1].parameters, row.forced);
    EXPECT_EQ(wishes[2].parameters, row.requested);
    EXPECT_EQ(wishes[3].parameters, row.model_default);
  }
}

TEST(SelectionPolicy, LiveForcesAreBoundedAndEndedOnesMakeRoom) {
  ManualClock clock;
  SelectionPolicy policy(std::nullopt, clock.Read());
  std::string last;
  for (size_t i = 0; i < SelectionPolicy::kMaxLeases; ++i) {
    last = AddForce(policy, kX, milliseconds(100), "", "").id;
  }
  try {
    AddForce(policy, kX, std::nullopt, "", "");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(error.reason(), "TOO_MANY_FORCES");
  }
  EXPECT_TRUE(policy.Release(last));
  EXPECT_NO_THROW(AddForce(policy, kX, std::nullopt, "", ""));
  clock.now += milliseconds(100);
  EXPECT_NO_THROW(AddForce(policy, kX, std::nullopt, "", ""));
  EXPECT_EQ(policy.Clear(), 2);
}

// Which forces ended, in order.
struct Ends {
  std::vector<std::string> ids;
  SelectionPolicy::OnEnd Listener() {
    return [this](const Lease& force) { ids.push_back(force.id); };
  }
};

TEST(SelectionPolicy, AReleasedForceTellsItsHolderOnce) {
  SelectionPolicy policy;
  Ends ends;
  const Lease force = AddForce(policy, kX, std::nullopt, "", "", "", ends.Listener());
  EXPECT_TRUE(ends.ids.empty());
  EXPECT_TRUE(policy.Release(force.id));
  EXPECT_FALSE(policy.Release(force.id));
  EXPECT_EQ(policy.Clear(), 0);
  EXPECT_EQ(ends.ids, std::vector{force.id});
}

TEST(SelectionPolicy, ClearTellsEveryHolder) {
  SelectionPolicy policy;
  Ends ends;
  const Lease one = AddForce(policy, kX, std::nullopt, "", "", "", ends.Listener());
  const Lease two = AddForce(policy, kY, std::nullopt, "", "", "", ends.Listener());
  const ScopedForce lifted(policy, std::nullopt);
  EXPECT_EQ(policy.Clear(), 2);
  EXPECT_EQ(ends.ids, (std::vector{one.id, two.id}));
}

TEST(SelectionPolicy, AForceWhoseTimeIsOverTellsItsHolderOnceWhoeverSawItFirst) {
  ManualClock clock;
  SelectionPolicy policy(std::nullopt, clock.Read());
  Ends ends;
  const Lease force = AddForce(policy, kX, milliseconds(100), "", "", "", ends.Listener());
  policy.EndDue();
  EXPECT_TRUE(ends.ids.empty());
  clock.now += milliseconds(100);
  policy.version();  // the engine looks first, and calls nobody
  EXPECT_FALSE(policy.Release(force.id));
  EXPECT_TRUE(ends.ids.empty());
  policy.EndDue();
  policy.EndDue();
  EXPECT_EQ(ends.ids, std::vector{force.id});
}

TEST(SelectionPolicy, AHolderMayCallThePolicyWhenItsForceEnds) {
  SelectionPolicy policy;
  bool heard = false;
  const Lease force = AddForce(policy, kX, std::nullopt, "", "", "", [&](const Lease& ended) {
    heard = !policy.Release(ended.id) && policy.List().empty();
  });
  policy.Release(force.id);
  EXPECT_TRUE(heard);
}

// With the real clock the policy's own thread tells; nobody has to ask.
TEST(SelectionPolicy, TheTimerTellsByItself) {
  std::promise<std::string> ended;
  SelectionPolicy policy;
  AddForce(policy, kX, milliseconds(60000), "a later one comes first", "");
  const Lease force = AddForce(policy, kX, milliseconds(1), "", "", "",
                               [&](const Lease& force) { ended.set_value(force.id); });
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_EQ(future.get(), force.id);
  EXPECT_EQ(policy.List().size(), 1u);
}

// A release that races with the making of a force is heard: the listener is there before it.
TEST(SelectionPolicy, EveryForceEndsOnceWhileOthersClear) {
  SelectionPolicy policy;
  std::atomic<int> made{0}, ended{0};
  std::atomic<bool> done{false};
  std::thread clearer([&] {
    while (!done) policy.Clear();
  });
  std::vector<std::thread> makers;
  for (int t = 0; t < 3; ++t) {
    makers.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i, ++made) {
        // A clearer that gets no core must not let the table run full.
        while (policy.List().size() > 500) std::this_thread::yield();
        const auto ttl = t == 0 ? std::optional(milliseconds(1)) : std::nullopt;
        AddForce(policy, kX, ttl, "", "", "", [&](const Lease&) { ++ended; });
      }
    });
  }
  for (std::thread& maker : makers) maker.join();
  done = true;
  clearer.join();
  policy.Clear();
  while (ended != made) std::this_thread::yield();  // the timer may be on its way
  EXPECT_EQ(ended, 1500);
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
