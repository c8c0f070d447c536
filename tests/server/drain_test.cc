// The phases of a stop, with a fake engine.
#include "server/drain.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <future>

#include "tests/server/fake_engine.h"

namespace denoised {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class DrainTest : public testing::Test {
 protected:
  ~DrainTest() override {
    logger_.Flush(seconds(20));
    std::fclose(null_);
  }
  std::string Submit() {
    const auto result = engine_.Submit({});
    return std::get<JobSnapshot>(result).id;
  }
  std::future<bool> WaitQuietAsync() {
    return std::async(std::launch::async,
                      [this] { return WaitQuiet(&engine_, calls_, seconds(20)); });
  }

  std::FILE* const null_ = std::fopen("/dev/null", "w");
  Logger logger_{null_};
  FakeEngine engine_;
  OpenCalls calls_{100};
};

TEST_F(DrainTest, AnIdleServerIsQuietAtOnce) {
  EXPECT_TRUE(WaitQuiet(&engine_, calls_, seconds(20)));
}

TEST_F(DrainTest, RunningWorkAndOpenStreamsHaveUntilTheGraceIsOver) {
  engine_.idle = false;
  EXPECT_FALSE(WaitQuiet(&engine_, calls_, milliseconds(1)));
  engine_.idle = true;
  const auto stream = calls_.Enter("a");
  EXPECT_FALSE(WaitQuiet(&engine_, calls_, milliseconds(1)));
}

TEST_F(DrainTest, AnOpenStreamIsWaitedFor) {
  auto stream = calls_.Enter("a");
  auto quiet = WaitQuietAsync();
  EXPECT_EQ(quiet.wait_for(milliseconds(100)), std::future_status::timeout);
  stream.reset();
  EXPECT_TRUE(quiet.get());
}

TEST_F(DrainTest, AResultThatWasNotFetchedIsWaitedFor) {
  const std::string id = Submit();
  engine_.Succeed(id, "bytes");
  EXPECT_FALSE(WaitQuiet(&engine_, calls_, milliseconds(1)));
  auto quiet = WaitQuietAsync();
  EXPECT_EQ(quiet.wait_for(milliseconds(100)), std::future_status::timeout);
  engine_.jobs().MarkFetched(id);
  EXPECT_TRUE(quiet.get());
}

TEST_F(DrainTest, AJobThatIsStuckInAStepIsDeclaredCancelled) {
  const std::string id = Submit();
  engine_.Change(id, [](JobSnapshot& job) { job.state = JobState::kRunning; });
  engine_.idle = false;  // and never gets idle
  EndWork(&engine_, calls_, &logger_);
  EXPECT_EQ(engine_.stops, 1);
  const JobSnapshot job = *engine_.jobs().Get(id);
  EXPECT_EQ(job.state, JobState::kCancelled);
  EXPECT_EQ(job.error->reason, "CANCELLED");
}

TEST_F(DrainTest, AFullDiskKeepsNoStuckJobFromBeingLeftToTheNextStart) {
  engine_.jobs().on_full_disk = true;
  for (int job = 0; job < 3; ++job) {
    engine_.Change(Submit(), [](JobSnapshot& job) { job.state = JobState::kRunning; });
  }
  engine_.idle = false;  // and never gets idle
  EndWork(&engine_, calls_, &logger_);
  EXPECT_EQ(engine_.jobs().interrupts, 3) << "each was tried";
}

}  // namespace
}  // namespace denoised
