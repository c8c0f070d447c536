// What a job costs that waits.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/engine/engine_impl.h"
#include "tests/allocated.h"
#include "tests/peak_memory.h"
#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

// Not the fakes' own store, which remembers every state of every job.
std::unique_ptr<EngineImpl> MakeEngine(FakeModel* model, Observer* observer, Logger* logger) {
  EngineOptions options;
  options.max_queued_jobs = 10000;
  options.max_running_jobs = 1;
  auto policy = std::make_unique<SelectionPolicy>(std::nullopt);
  LoadedRepository loaded;
  loaded.pipelines.push_back(
      std::make_unique<FakePipeline>(model, policy.get(), std::chrono::steady_clock::now));
  loaded.default_model = model->name;
  loaded.source = std::make_unique<FakeSource>(policy.get());
  return std::make_unique<EngineImpl>(options, std::move(policy), std::move(loaded),
                                      MakeMemoryJobStore(0, 1 << 20), observer, logger);
}

TEST(EngineWaiting, AJobTakesLittleMoreMemoryThanItsPrompt) {
  if (!PeakMemory::kMeasures) GTEST_SKIP() << "a sanitizer's memory is not the program's";
  constexpr int64_t kPrompt = 200, kFirst = 1000, kMore = 3000;
  FakeModel model;
  Observer observer;
  Logger logger(stderr, LogLevel::kError);
  model.steps.Close();
  const auto engine = MakeEngine(&model, &observer, &logger);
  const auto submit = [&](int64_t jobs) {
    for (int64_t i = 0; i < jobs; ++i) {
      const auto answer = engine->Submit(SmallRequest(std::string(kPrompt, 'a')));
      ASSERT_TRUE(std::holds_alternative<JobSnapshot>(answer));
    }
  };
  submit(kFirst);  // the first of which begins
  const int64_t before = AllocatedBytes();
  submit(kMore);
  EXPECT_LE((AllocatedBytes() - before) / kMore - kPrompt, 4096);
  model.steps.Open();
}

TEST(RecentEstimates, WhatIsUsedAgainAndAgainStaysShared) {
  RecentEstimates estimates;
  std::vector<EstimatePtr> held;
  const auto of = [](int64_t bytes) {
    WorkEstimate estimate;
    estimate.peak_bytes = bytes;
    return estimate;
  };
  const EstimatePtr often = estimates.Share(of(0));
  for (int64_t i = 1; i < 100; ++i) {
    held.push_back(estimates.Share(of(i)));
    EXPECT_EQ(held.back()->peak_bytes, i);
    EXPECT_EQ(estimates.Share(of(0)), often);
  }
  EXPECT_NE(estimates.Share(of(1)), held.front()) << "it was long ago";
}

}  // namespace
}  // namespace denoised
