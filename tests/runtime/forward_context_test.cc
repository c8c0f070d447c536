// FastVideo's forward context, its verified defects as "must not", and what ours adds.
#include "runtime/attention/forward_context.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <thread>

#include "backends/error.h"

namespace denoised {
namespace {

ForwardContext Step(int64_t step) {
  ForwardContext context;
  context.current_timestep = step;
  return context;
}

TEST(ForwardContext, AskingOutsideOfAScopeIsAnErrorThatSaysWhatToDo) {
  EXPECT_FALSE(HasForwardContext());
  try {
    GetForwardContext();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_NE(std::string(error.what()).find("ScopedForwardContext"), std::string::npos);
  }
}

TEST(ForwardContext, HoldsWhatItWasGiven) {
  const AttentionPlan plan;
  const ForwardBatch batch{{{"job-1"}, {"job-2"}}, true};
  ForwardContext context = Step(3);
  context.timestep = 750.5;
  context.sigma = 0.75;
  context.branch = Branch::kUnconditional;
  context.expert = 1;
  context.attn_metadata = &plan;
  context.forward_batch = &batch;
  const ScopedForwardContext scope(context);
  ASSERT_TRUE(HasForwardContext());
  const ForwardContext& seen = GetForwardContext();
  EXPECT_EQ(seen.current_timestep, 3);
  EXPECT_EQ(seen.timestep, 750.5);
  EXPECT_EQ(seen.sigma, 0.75);
  EXPECT_EQ(BranchName(seen.branch), "uncond");
  EXPECT_EQ(seen.expert, 1);
  EXPECT_EQ(seen.attn_metadata, &plan);
  EXPECT_EQ(seen.forward_batch->rows[1].request_id, "job-2");
}

TEST(ForwardContext, SaysOnceWhatIsSoOfEveryRow) {
  const ForwardBatch alike{
      {{"a", Branch::kNone, 3, 750.5, 0.75}, {"b", Branch::kNone, 3, 750.5, 0.75}}};
  const ForwardContext same = ContextOf(alike);
  EXPECT_EQ(same.forward_batch, &alike);
  EXPECT_EQ(same.current_timestep, 3);
  EXPECT_EQ(same.timestep, 750.5);
  EXPECT_EQ(same.sigma, 0.75);
  EXPECT_EQ(same.branch, Branch::kNone);

  const ForwardBatch mixed{{{"a", Branch::kConditional, 3, 750.5, 0.75},
                            {"a", Branch::kUnconditional, 3, 750.5, 0.75},
                            {"b", Branch::kNone, 4, 600, 0.5}}};
  const ForwardContext differing = ContextOf(mixed);
  EXPECT_EQ(differing.current_timestep, ForwardContext::kMixedStep);
  EXPECT_TRUE(std::isnan(differing.timestep));
  EXPECT_TRUE(std::isnan(differing.sigma));
  EXPECT_EQ(differing.branch, Branch::kMixed);
}

TEST(ForwardContext, SharedCallsAreSharedOutByRowsAndCountForEachPass) {
  AttentionTally shared, one, other;
  shared.Of(AttnBackend::kFlashAttn) = {6, 4.0};
  one.Of(AttnBackend::kFlashAttn) = {1, 1.0};
  one.AddShare(shared, 2, 0.5);
  other.AddShare(shared, 1, 0.25);
  EXPECT_EQ(one.Of(AttnBackend::kFlashAttn).calls, 13u);
  EXPECT_DOUBLE_EQ(one.Of(AttnBackend::kFlashAttn).seconds, 3.0);
  EXPECT_EQ(other.Of(AttnBackend::kFlashAttn).calls, 6u);
  EXPECT_DOUBLE_EQ(other.Of(AttnBackend::kFlashAttn).seconds, 1.0);
}

TEST(ForwardContext, NestsAndRestores) {
  const ScopedForwardContext outer(Step(1));
  {
    const ScopedForwardContext inner(Step(2));
    EXPECT_EQ(GetForwardContext().current_timestep, 2);
  }
  EXPECT_EQ(GetForwardContext().current_timestep, 1);
}

TEST(ForwardContext, RestoresWhenTheBodyThrows) {
  const ScopedForwardContext outer(Step(1));
  EXPECT_THROW(
      {
        const ScopedForwardContext inner(Step(2));
        throw std::runtime_error("in the body");
      },
      std::runtime_error);
  EXPECT_EQ(GetForwardContext().current_timestep, 1);
}

// Defect 1: tracking raised at exit, hid the body's exception and leaked the context.
TEST(ForwardContext, MustNotThrowAtExitNorLeakWhenTheMeasurementFails) {
  {
    const ScopedForwardContext scope(
        Step(1), [](const ForwardContext&, double) { throw std::runtime_error("metrics"); });
  }
  EXPECT_FALSE(HasForwardContext());
  {
    const ScopedForwardContext scope(
        Step(1), [](const ForwardContext&, double) {}, [] { throw std::runtime_error("device"); });
  }
  EXPECT_FALSE(HasForwardContext());
}

TEST(ForwardContext, MustNotHideTheExceptionOfTheBody) {
  bool measured = false;
  try {
    const ScopedForwardContext scope(Step(1), [&](const ForwardContext&, double) {
      measured = true;
      throw std::runtime_error("metrics");
    });
    throw std::logic_error("body");
  } catch (const std::logic_error& error) {
    EXPECT_STREQ(error.what(), "body");
  }
  EXPECT_FALSE(measured);
  EXPECT_FALSE(HasForwardContext());
}

// A forward that runs inside of a destructor during unwinding is still a whole forward.
TEST(ForwardContext, MeasuresAScopeThatBeginsWhileAnotherExceptionUnwinds) {
  struct ForwardsInDestructor {
    bool* measured;
    ~ForwardsInDestructor() {
      const ScopedForwardContext scope(Step(1),
                                       [this](const ForwardContext&, double) { *measured = true; });
    }
  };
  bool measured = false;
  try {
    const ForwardsInDestructor guard{&measured};
    throw std::runtime_error("unwinding");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(measured);
}

// Defect 2: the first sample was lost to an interval timer that started at machine boot.
TEST(ForwardContext, MustNotLoseTheFirstSample) {
  int samples = 0;
  const auto count = [&](const ForwardContext&, double seconds) {
    ++samples;
    EXPECT_GE(seconds, 0.0);
    EXPECT_LT(seconds, 60.0);
  };
  { const ScopedForwardContext scope(Step(0), count); }
  EXPECT_EQ(samples, 1);
  { const ScopedForwardContext scope(Step(1), count); }
  EXPECT_EQ(samples, 2);
}

// Defect 3: a nested context overwrote the outer start time.
TEST(ForwardContext, MustNotShortenTheOuterTimeByANestedScope) {
  double outer_seconds = 0, inner_seconds = 0;
  {
    const ScopedForwardContext outer(
        Step(1), [&](const ForwardContext&, double seconds) { outer_seconds = seconds; });
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
    while (std::chrono::steady_clock::now() < until) {
    }
    const ScopedForwardContext inner(
        Step(2), [&](const ForwardContext&, double seconds) { inner_seconds = seconds; });
  }
  EXPECT_GE(outer_seconds, 0.002);
  EXPECT_GE(outer_seconds, inner_seconds + 0.002);
}

// Defect 4: durations were launch times.
TEST(ForwardContext, MustWaitForTheDeviceBeforeItStopsTheClock) {
  std::vector<std::string> order;
  {
    const ScopedForwardContext scope(
        Step(1), [&](const ForwardContext&, double) { order.push_back("done"); },
        [&] { order.push_back("synchronize"); });
  }
  EXPECT_EQ(order, (std::vector<std::string>{"synchronize", "done"}));
}

// Defect 5: the slot was one global that other threads saw and overwrote.
TEST(ForwardContext, MustNotBeSeenByAnotherThread) {
  const ScopedForwardContext scope(Step(1));
  bool seen = true;
  std::thread([&] { seen = HasForwardContext(); }).join();
  EXPECT_FALSE(seen);
}

TEST(ForwardContext, MustNotMixTheContextsOfConcurrentThreads) {
  std::atomic<int> mixed{0};
  std::vector<std::thread> threads;
  for (int64_t id = 0; id < 4; ++id) {
    threads.emplace_back([&mixed, id] {
      for (int i = 0; i < 2000; ++i) {
        const ScopedForwardContext outer(Step(id));
        const ScopedForwardContext inner(Step(id + 100));
        if (GetForwardContext().current_timestep != id + 100) ++mixed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(mixed, 0);
}

// Hand-off to another thread is explicit: copy the snapshot, open a scope there.
TEST(ForwardContext, ASnapshotCanBeAdoptedByAnotherThread) {
  const ScopedForwardContext scope(Step(7));
  const ForwardContext snapshot = GetForwardContext();
  int64_t seen = -1;
  std::thread([&] {
    const ScopedForwardContext adopted(snapshot);
    seen = GetForwardContext().current_timestep;
  }).join();
  EXPECT_EQ(seen, 7);
}

TEST(ForwardContext, GivesTheMeasurementTheContextThatEnds) {
  int64_t ended = -1;
  const ScopedForwardContext outer(Step(1));
  {
    const ScopedForwardContext inner(Step(2), [&](const ForwardContext& context, double) {
      ended = context.current_timestep;
      EXPECT_EQ(GetForwardContext().current_timestep, 1);
    });
  }
  EXPECT_EQ(ended, 2);
}

}  // namespace
}  // namespace denoised
