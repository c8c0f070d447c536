// Results, time limits and the order of jobs, whatever the time of day is set to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/store/request_row.h"
#include "tests/runtime/manual_clocks.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using testing::ElementsAre;

constexpr hours kDay(24);

class StoreClocks : public testing::Test {
 protected:
  StoreClocks() {
    options_.state_dir = folder_.path();
    options_.hooks = &clocks_;
    options_.keep_results = 7 * kDay;
    Open();
  }

  void Open() { store_ = OpenJobStore(options_, &logger_.logger); }
  void Close() { store_.reset(); }
  void Restart() {
    Close();
    clocks_.Restart();
    Open();
  }
  void Reboot(milliseconds wall_meanwhile) {
    Close();
    clocks_.Reboot();
    clocks_.SetWallBy(wall_meanwhile);
    Open();
  }
  void Add(const std::string& id, const GenerationRequest& request = NewRequest()) {
    JobSnapshot job = NewJob(id);
    job.created_at = clocks_.now().wall;
    store_->Add(job, request);
  }
  void Ended(const std::string& id) {
    Add(id);
    store_->Start(id);
    store_->PutArtifact(id, {ArtifactFormat::kMp4, "video.mp4", 0, ""}, "bytes");
    const ArtifactInfo info = store_->GetArtifact(id, ArtifactFormat::kMp4)->info();
    store_->Update(id, [&](JobSnapshot& job) {
      job.state = JobState::kSucceeded;
      job.artifacts = {info};
      job.finished_at = clocks_.now().wall;
    });
  }
  // Whether a job is there after the store has looked for old ones.
  bool IsKept(const std::string& id) {
    Ended("looks" + std::to_string(++looks_));
    return store_->GetArtifact(id, ArtifactFormat::kMp4) != nullptr;
  }
  void AddWithLimit(const std::string& id, milliseconds limit) {
    GenerationRequest request = NewRequest();
    request.deadline = clocks_.now().steady + limit;
    Add(id, request);
  }
  // What is left of the only job's time.
  milliseconds Left() {
    const auto jobs = store_->Recover();
    EXPECT_EQ(jobs.size(), 1u);
    return std::chrono::duration_cast<milliseconds>(*jobs.at(0).request.deadline -
                                                    clocks_.now().steady);
  }
  std::vector<std::string> ByAge(const std::vector<AcceptedJob>& jobs) const {
    std::vector<AcceptedJob> sorted = jobs;
    std::stable_sort(sorted.begin(), sorted.end(), [](const AcceptedJob& a, const AcceptedJob& b) {
      return a.queued_at < b.queued_at;
    });
    std::vector<std::string> ids;
    for (const AcceptedJob& job : sorted) ids.push_back(job.snapshot.id);
    return ids;
  }

  ManualClocks clocks_;
  QuietLogger logger_;
  const TemporaryFolder folder_;
  StoreOptions options_;
  std::unique_ptr<JobStore> store_;
  int looks_ = 0;
};

TEST_F(StoreClocks, AJumpOfTheTimeOfDayAgesNoResult) {
  Ended("a");
  clocks_.SetWallBy(10 * kDay);
  EXPECT_TRUE(IsKept("a"));
  clocks_.SetWallBy(-20 * kDay);
  EXPECT_TRUE(IsKept("a"));
  clocks_.Pass(8 * kDay);
  EXPECT_FALSE(IsKept("a")) << "time that has passed does";
}

TEST_F(StoreClocks, NorDoesOneBetweenTwoServersOfABoot) {
  Ended("a");
  clocks_.SetWallBy(10 * kDay);
  Restart();
  EXPECT_TRUE(IsKept("a"));
  clocks_.SetWallBy(-20 * kDay);
  Restart();
  EXPECT_TRUE(IsKept("a"));
  clocks_.Pass(4 * kDay);
  Restart();
  EXPECT_TRUE(IsKept("a"));
  clocks_.Pass(4 * kDay);
  EXPECT_FALSE(IsKept("a")) << "four days in one server and four in the next";
}

TEST_F(StoreClocks, TimeThatPassesWhileNoServerRunsAges) {
  Ended("a");
  Close();
  clocks_.Pass(8 * kDay);
  clocks_.Restart();
  Open();
  EXPECT_FALSE(IsKept("a"));
}

TEST_F(StoreClocks, AfterAnotherBootTheTimeOfDaySaysHowOldAResultIs) {
  Ended("a");
  Reboot(6 * kDay);
  EXPECT_TRUE(IsKept("a"));
  clocks_.Pass(kDay / 2);
  EXPECT_TRUE(IsKept("a"));
  clocks_.Pass(kDay);
  EXPECT_FALSE(IsKept("a"));
  Ended("b");
  Reboot(-10 * kDay);
  EXPECT_TRUE(IsKept("b")) << "no age is below 0";
  clocks_.Pass(8 * kDay);
  EXPECT_FALSE(IsKept("b"));
}

TEST_F(StoreClocks, AResultOfAClockThatWasNotSetIsNewAfterAnotherBoot) {
  const auto since_1970 = clocks_.now().wall.time_since_epoch();
  clocks_.SetWallBy(-std::chrono::duration_cast<milliseconds>(since_1970));
  Ended("a");
  clocks_.SetWallBy(std::chrono::duration_cast<milliseconds>(since_1970));
  EXPECT_TRUE(IsKept("a")) << "the clock is set while the server lives";
  Reboot(kDay);
  EXPECT_TRUE(IsKept("a"));
}

TEST_F(StoreClocks, ATimeLimitNeitherGrowsNorGoesWithTheTimeOfDay) {
  AddWithLimit("a", minutes(10));
  for (const hours jump : {10 * kDay, -20 * kDay}) {
    clocks_.SetWallBy(jump);
    clocks_.Pass(minutes(2));
    Restart();
    const auto left = Left();
    EXPECT_TRUE(left == minutes(8) || left == minutes(6)) << left.count();
  }
  Close();
  clocks_.Pass(minutes(7));
  clocks_.Restart();
  Open();
  EXPECT_EQ(Left(), -minutes(1)) << "it has passed while no server ran";
}

TEST_F(StoreClocks, AfterAnotherBootATimeLimitIsATimeOfDayAndNeverLonger) {
  AddWithLimit("a", minutes(10));
  Reboot(minutes(3));
  EXPECT_EQ(Left(), minutes(7));
  Reboot(-10 * kDay);
  EXPECT_EQ(Left(), minutes(10));
  Reboot(10 * kDay);
  EXPECT_EQ(Left(), minutes(7));
  Reboot(10 * kDay);
  EXPECT_LT(Left(), minutes(0));
}

TEST_F(StoreClocks, JobsWaitInTheOrderOfTheirNumbers) {
  Add("first");
  clocks_.SetWallBy(10 * kDay);
  clocks_.Pass(minutes(1));
  Add("second");
  clocks_.SetWallBy(-20 * kDay);
  clocks_.Pass(minutes(1));
  Add("third");
  Restart();
  auto jobs = store_->Recover();
  EXPECT_THAT(ByAge(jobs), ElementsAre("first", "second", "third"));
  EXPECT_EQ(clocks_.now().steady - jobs[0].queued_at, minutes(2));
  EXPECT_EQ(clocks_.now().steady - jobs[2].queued_at, minutes(0));
  Reboot(minutes(1));
  jobs = store_->Recover();
  EXPECT_THAT(ByAge(jobs), ElementsAre("first", "second", "third"));
}

// The oldest goes where there are too many: by the order of ends, also after a restart.
TEST_F(StoreClocks, JobsEndInTheOrderOfTheirEnds) {
  Ended("first");
  clocks_.SetWallBy(-10 * kDay);
  Ended("second");
  clocks_.SetWallBy(-10 * kDay);
  Ended("third");
  Close();
  options_.max_finished = 2;
  clocks_.Restart();
  Open();
  EXPECT_FALSE(store_->Get("first"));
  EXPECT_TRUE(store_->Get("second"));
  Ended("fourth");
  EXPECT_FALSE(store_->Get("second"));
  EXPECT_TRUE(store_->Get("third"));
}

TEST(PastMoments, KnowTheirAgeByTheClockThatIsLeft) {
  ManualClocks clocks;
  const PastMoment moment = MomentOf(clocks.now());
  EXPECT_EQ(AgeOf(moment, clocks.now()), microseconds(0));
  clocks.Pass(seconds(3));
  clocks.SetWallBy(10 * kDay);
  EXPECT_EQ(AgeOf(moment, clocks.now()), seconds(3));
  clocks.Reboot();
  EXPECT_EQ(AgeOf(moment, clocks.now()), 10 * kDay + seconds(3));
  clocks.SetWallBy(-30 * kDay);
  EXPECT_EQ(AgeOf(moment, clocks.now()), microseconds(0));
  ClockReading unnamed = clocks.now();
  unnamed.boot_id = "";
  EXPECT_EQ(AgeOf({"", microseconds(0), unnamed.wall - seconds(9)}, unnamed), seconds(9))
      << "a boot without a name is no boot's";
}

// What servers wrote before limits were kept on every clock.
TEST(PastMoments, ALimitThatWasATimeOfDayIsRead) {
  ManualClocks clocks;
  RequestRow row = WriteRequest(NewRequest(), clocks.now());
  const auto wall = clocks.now().wall.time_since_epoch() + minutes(10);
  row.text.insert(
      1, "\"deadline\":" + std::to_string(std::chrono::duration_cast<microseconds>(wall).count()) +
             ",");
  EXPECT_EQ(ReadRequest(row, clocks.now()).deadline, clocks.now().steady + minutes(10));
}

}  // namespace
}  // namespace denoised
