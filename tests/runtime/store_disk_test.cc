// A disk that is full or fails: refused by name, nothing lost, well again without a restart.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "runtime/store/hooks.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

Error DiskFull() {
  return Error(StatusCode::kResourceExhausted, "No space left on device", "", "DISK");
}

// Edges that contain `failing` answer as a full disk.
class FailingDisk : public StoreHooks {
 public:
  void At(std::string_view edge) override {
    const std::lock_guard lock(mutex_);
    if (!failing_.empty() && edge.find(failing_) != std::string_view::npos) {
      ++failures_;
      changed_.notify_all();
      throw DiskFull();
    }
  }
  uint64_t FreeBytes(uint64_t said) override { return full ? 1000 : said; }

  void Fail(const std::string& part) {
    const std::lock_guard lock(mutex_);
    failing_ = part;
  }
  void AwaitFailures(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failures_ >= count; });
  }
  int failures() {
    const std::lock_guard lock(mutex_);
    return failures_;
  }

  std::atomic<bool> full{false};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string failing_;
  int failures_ = 0;
};

class StoreOnABadDisk : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  void Reopen() {
    store_.reset();
    options_.state_dir = folder_.path();
    options_.hooks = &disk_;
    store_ = OpenJobStore(options_, &logger_.logger);
  }
  std::string ReasonOf(const std::function<void()>& work) {
    try {
      work();
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
      return error.reason();
    }
  }
  // A watcher of `id` that waits until `condition` holds.
  void Await(const std::string& id, const std::function<bool(const JobSnapshot&)>& condition) {
    auto bell = std::make_shared<Bell>();
    const auto watch = store_->Watch(id, [bell] {
      const std::lock_guard lock(bell->mutex);
      ++bell->rings;
      bell->rung.notify_all();
    });
    for (int seen = 0; !condition(*store_->Get(id));) {
      std::unique_lock lock(bell->mutex);
      bell->rung.wait(lock, [&] { return bell->rings > seen; });
      seen = bell->rings;
    }
  }

  struct Bell {
    std::mutex mutex;
    std::condition_variable rung;
    int rings = 0;
  };
  QuietLogger logger_;
  TemporaryFolder folder_;
  FailingDisk disk_;
  StoreOptions options_;
  std::unique_ptr<JobStore> store_;
};

TEST_F(StoreOnABadDisk, AFullDiskRefusesNewJobsBeforeAnythingIsWritten) {
  EXPECT_FALSE(store_->WhyNotReady());
  store_->Add(NewJob("before"), NewRequest());
  disk_.full = true;
  EXPECT_EQ(ReasonOf([&] { store_->Add(NewJob("a"), NewRequest()); }), "DISK");
  EXPECT_THAT(*store_->WhyNotReady(), HasSubstr(options_.state_dir));
  EXPECT_FALSE(store_->Get("a"));
  EXPECT_EQ(ReasonOf([&] { store_->PutArtifact("before", {}, "bytes"); }), "DISK");
  EndJob(*store_, "before", JobState::kCancelled);
  EXPECT_EQ(store_->Get("before")->state, JobState::kCancelled) << "ends have room kept for them";
  disk_.full = false;
  EXPECT_FALSE(store_->WhyNotReady());
  EXPECT_TRUE(store_->Add(NewJob("a"), NewRequest()).second);
}

TEST_F(StoreOnABadDisk, ARefusedKeyIsFree) {
  GenerationRequest request = NewRequest();
  request.idempotency_key = "key";
  disk_.full = true;
  EXPECT_EQ(ReasonOf([&] { store_->Add(NewJob("a"), request); }), "DISK");
  disk_.full = false;
  EXPECT_EQ(store_->Add(NewJob("b"), request).first.id, "b");
}

TEST_F(StoreOnABadDisk, AFailedCommitLeavesNothingAndReadinessComesBackByItself) {
  disk_.Fail("before_commit");
  EXPECT_EQ(ReasonOf([&] { store_->Add(NewJob("a"), NewRequest()); }), "DISK");
  EXPECT_THAT(*store_->WhyNotReady(), HasSubstr("No space left"));
  EXPECT_FALSE(store_->Get("a"));
  disk_.AwaitFailures(3);  // it is asked again though nobody wants anything
  disk_.Fail("");
  while (store_->WhyNotReady()) std::this_thread::yield();
  Reopen();
  EXPECT_THAT(store_->Recover(), IsEmpty());
}

TEST_F(StoreOnABadDisk, AStartThatIsNotKeptDidNotHappen) {
  store_->Add(NewJob("a"), NewRequest());
  disk_.Fail("start");
  EXPECT_EQ(ReasonOf([&] { store_->Start("a"); }), "DISK");
  EXPECT_EQ(store_->Get("a")->state, JobState::kQueued);
  EXPECT_EQ(store_->Get("a")->attempt, 0);
  disk_.Fail("");
  EXPECT_EQ(store_->Start("a"), 1);
}

TEST_F(StoreOnABadDisk, StartsOfSeveralAreOneWriteAndNoneHappensWithoutIt) {
  const std::vector<std::string> ids = {"a", "b", "c"};
  for (const std::string& id : ids) store_->Add(NewJob(id), NewRequest());
  disk_.Fail("start");
  for (const auto& started : store_->StartAll(ids)) {
    EXPECT_EQ(std::get<Error>(started).reason(), "DISK");
  }
  EXPECT_LE(disk_.failures(), 2) << "with a probe beside it, it is tried by itself as well";
  for (const std::string& id : ids) EXPECT_EQ(store_->Get(id)->state, JobState::kQueued);
  disk_.Fail("");
  for (const auto& started : store_->StartAll(ids)) EXPECT_EQ(std::get<int64_t>(started), 1);
}

TEST_F(StoreOnABadDisk, SequencesRiseFromLifeToLifeThoughTheDiskDidNotTakeTheirStarts) {
  store_->Add(NewJob("a"), NewRequest());
  uint64_t last = store_->Get("a")->sequence;
  disk_.Fail("recover");
  for (int life = 0; life < 3; ++life) {
    Reopen();
    EXPECT_GT(store_->Get("a")->sequence, last);
    store_->Update("a", [](JobSnapshot& job) { ++job.step; });
    last = store_->Get("a")->sequence;
  }
}

TEST_F(StoreOnABadDisk, AnEndWaitsForTheDiskAndHoldsNobodyUp) {
  store_->Add(NewJob("a"), NewRequest());
  store_->Add(NewJob("b"), NewRequest());
  store_->Start("a");
  disk_.Fail("commit");
  EndJob(*store_, "a", JobState::kFailed);
  EXPECT_EQ(store_->Get("a")->state, JobState::kRunning) << "not seen before it is kept";
  store_->Update("b", [](JobSnapshot& job) { job.step = 3; });
  EXPECT_EQ(store_->Get("b")->step, 3);
  const auto again =
      store_->Update("a", [](JobSnapshot& job) { job.state = JobState::kSucceeded; });
  EXPECT_EQ(again->state, JobState::kFailed) << "its end is what it was";
  disk_.AwaitFailures(3);
  disk_.Fail("");
  Await("a", [](const JobSnapshot& job) { return job.state == JobState::kFailed; });
  EXPECT_FALSE(store_->WhyNotReady());
  Reopen();
  EXPECT_EQ(store_->Get("a")->state, JobState::kFailed);
}

TEST_F(StoreOnABadDisk, AHalfWrittenResultLeavesNothing) {
  store_->Add(NewJob("a"), NewRequest());
  store_->Start("a");
  for (const char* edge : {"artifact.half_written", "artifact.before_rename"}) {
    disk_.Fail(edge);
    EXPECT_EQ(ReasonOf([&] { store_->PutArtifact("a", {}, "0123456789"); }), "DISK") << edge;
    EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kMp4));
    EXPECT_THAT(FilesIn(folder_.path() / "artifacts"), IsEmpty());
  }
  disk_.Fail("");
  store_->PutArtifact("a", {}, "0123456789");
  EXPECT_TRUE(store_->GetArtifact("a", ArtifactFormat::kMp4));
}

TEST_F(StoreOnABadDisk, CheckpointsAreDroppedWithOneWarning) {
  store_->Add(NewJob("a"), NewRequest());
  store_->Start("a");
  disk_.Fail("checkpoint");
  for (int i = 1; i <= 3; ++i) {
    store_->Checkpoint("a", i, "state");
    disk_.AwaitFailures(i);
  }
  disk_.Fail("");
  store_->Interrupt("a");
  const std::string log = logger_.Text();
  const size_t first = log.find("checkpoint.not_written");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(log.find("checkpoint.not_written", first + 1), std::string::npos);
  EXPECT_FALSE(store_->ReadCheckpoint("a"));
  store_->Checkpoint("a", 4, "state");
  EXPECT_EQ(store_->ReadCheckpoint("a")->first, 4);
}

TEST_F(StoreOnABadDisk, AnInterruptThatIsNotKeptIsNoCrash) {
  for (const char* id : {"parked", "crashed"}) {
    store_->Add(NewJob(id), NewRequest());
    store_->Start(id);
  }
  disk_.Fail("change");
  EXPECT_EQ(ReasonOf([&] { store_->Interrupt("parked"); }), "DISK");
  store_.reset();
  disk_.Fail("");
  Reopen();
  for (const AcceptedJob& job : store_->Recover()) {
    EXPECT_EQ(job.crashes, job.snapshot.id == "parked" ? 0 : 1) << job.snapshot.id;
  }
  store_->Start("parked");
  Reopen();
  for (const AcceptedJob& job : store_->Recover()) EXPECT_GE(job.crashes, 1) << "noted once";
}

TEST_F(StoreOnABadDisk, NothingOvertakesWhatAnEarlierLifeLeft) {
  store_->Add(NewJob("a"), NewRequest());
  store_->Start("a");
  store_.reset();
  disk_.Fail("recover");
  Reopen();
  EXPECT_EQ(store_->Recover().at(0).crashes, 1);
  EXPECT_EQ(ReasonOf([&] { store_->Start("a"); }), "DISK") << "its row is older than it seems";
  disk_.Fail("");
  while (store_->WhyNotReady()) std::this_thread::yield();
  EXPECT_EQ(store_->Start("a"), 2);
  Reopen();
  EXPECT_EQ(store_->Get("a")->attempt, 2);
  EXPECT_EQ(store_->Recover().at(0).crashes, 2);
}

// The real thing: a file system of one MiB.
TEST(StoreOnAFullFileSystem, RefusesKeepsWhatItHasAndRecovers) {
  TemporaryFolder folder;
  if (mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "no file system can be mounted here";
  }
  const std::shared_ptr<void> unmount(nullptr,
                                      [&](void*) { umount2(folder.path().c_str(), MNT_DETACH); });
  QuietLogger logger;
  StoreOptions options;
  options.state_dir = folder.path();
  auto store = OpenJobStore(options, &logger.logger);
  GenerationRequest large = NewRequest();
  large.latents = HostTensor{DType::kUInt8, {60000}, std::string(60000, 'x')};
  std::vector<std::string> kept;
  std::string reason;
  for (int i = 0; reason.empty() && i < 100; ++i) {
    const std::string id = "job" + std::to_string(i);
    try {
      store->Add(NewJob(id), large);
      kept.push_back(id);
    } catch (const Error& error) {
      reason = error.reason();
    }
  }
  EXPECT_EQ(reason, "DISK");
  EXPECT_GE(kept.size(), 3u);
  store->Start(kept[0]);  // what is here has room to end
  EXPECT_THROW(store->PutArtifact(kept[0], {}, std::string(1 << 20, 'x')), Error);
  EndJob(*store, kept[0], JobState::kFailed);
  for (const std::string& id : kept) EndJob(*store, id, JobState::kCancelled);
  for (const std::string& id : kept) EXPECT_EQ(store->Get(id)->finished_at.has_value(), true) << id;
  store->Add(NewJob("after"), NewRequest());
  store.reset();
  store = OpenJobStore(options, &logger.logger);
  EXPECT_EQ(store->Recover().size(), 1u);
  for (const std::string& id : kept) EXPECT_TRUE(store->Get(id)) << id;
  store.reset();
}

}  // namespace
}  // namespace denoised
