#include "server/cli/job_changes.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>

namespace denoised::cli {
namespace {

TEST(JobChanges, AWakeThatEndsAfterTheWatcherTouchesNothingOfIt) {
  std::function<void()> late;
  std::optional<JobChanges> changes;
  changes.emplace([&](std::function<void()> wake) {
    late = std::move(wake);  // as a store that is in the middle of it
    return nullptr;
  });
  changes->Wait();
  changes.reset();
  late();  // AddressSanitizer judges
}

TEST(JobChanges, TheHandleOfTheWatchGoesWithTheWatcher) {
  auto handle = std::make_shared<int>(0);
  {
    JobChanges changes([&](std::function<void()>) { return handle; });
    EXPECT_EQ(handle.use_count(), 2);
  }
  EXPECT_EQ(handle.use_count(), 1);
}

TEST(JobChanges, EveryWakeIsSeenOnceAtLeast) {
  std::function<void()> wake;
  JobChanges changes([&](std::function<void()> w) {
    wake = std::move(w);
    return nullptr;
  });
  changes.Wait();
  std::thread other([&] { wake(); });
  changes.Wait();
  other.join();
}

}  // namespace
}  // namespace denoised::cli
