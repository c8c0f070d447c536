// What outlives a server: jobs, results, attempts, keys, sequences; and who may have the folder.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "runtime/store/hooks.h"
#include "tests/forwarding_store.h"
#include "tests/runtime/manual_clocks.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;
using testing::UnorderedElementsAre;

class DurableStore : public testing::Test {
 protected:
  DurableStore() { options_.state_dir = folder_.path() / "state"; }

  // Ends the store that there is, and opens the folder anew.
  JobStore& Reopen() {
    store_.reset();
    if (!logger_) logger_.emplace();
    store_ = OpenJobStore(options_, &logger_->logger);
    return *store_;
  }
  JobStore& store() { return *store_; }
  std::filesystem::path InState(const std::string& name) const {
    return std::filesystem::path(options_.state_dir) / name;
  }

  // Succeeds, with its one result.
  void End(const std::string& id) {
    store().Update(id, [](JobSnapshot& job) {
      job.state = JobState::kSucceeded;
      job.artifacts = {{ArtifactFormat::kMp4, "video.mp4", 5, "x"}};
      job.finished_at = std::chrono::system_clock::now();
    });
  }

  // A server that dies without a word: a child, forked while no thread runs here.
  void DieAfter(const std::function<void(JobStore&)>& work) {
    store_.reset();
    logger_.reset();
    const pid_t child = fork();
    if (child == 0) {
      Logger logger(std::tmpfile());
      const auto store = OpenJobStore(options_, &logger);
      store->Recover();
      work(*store);
      _exit(0);
    }
    ASSERT_EQ(AwaitChild(child), 0);
  }

  std::optional<QuietLogger> logger_;
  TemporaryFolder folder_;
  StoreOptions options_;
  std::unique_ptr<JobStore> store_;
};

TEST_F(DurableStore, ANewFolderIsEmptyAndForItsOwnerAlone) {
  EXPECT_THAT(Reopen().Recover(), IsEmpty());
  EXPECT_THAT(store().List(std::nullopt, 10, "").jobs, IsEmpty());
  struct stat status {};
  for (const char* name : {"", "artifacts", "checkpoints", "jobs.sqlite", "lock"}) {
    ASSERT_EQ(stat(InState(name).c_str(), &status), 0) << name;
    EXPECT_EQ(status.st_mode & 077, 0u) << name;
  }
}

TEST_F(DurableStore, EndedJobsAreTheSameAfterARestart) {
  Reopen().Add(NewJob("a"), NewRequest());
  store().Add(NewJob("b"), NewRequest());
  Complete(store(), "a", "the video's bytes");
  store().Update("b", [](JobSnapshot& job) {
    job.state = JobState::kFailed;
    job.finished_at = std::chrono::system_clock::now();
    job.error = JobError{StatusCode::kInternal, "why", "field", "REASON"};
    job.receipt.notes = {"note"};
  });
  const JobSnapshot before = *store().Get("a");
  EXPECT_THAT(Reopen().Recover(), IsEmpty());
  const JobSnapshot after = *store().Get("a");
  EXPECT_EQ(after.state, JobState::kSucceeded);
  EXPECT_EQ(after.sequence, before.sequence);
  EXPECT_EQ(after.attempt, 1);
  EXPECT_EQ(after.prompt, "a red circle");
  EXPECT_EQ(after.artifacts[0].sha256, before.artifacts[0].sha256);
  EXPECT_EQ(ReadAll(*store().GetArtifact("a", ArtifactFormat::kMp4)), "the video's bytes");
  EXPECT_EQ(store().Get("b")->error->reason, "REASON");
  EXPECT_THAT(store().Get("b")->receipt.notes, ElementsAre("note"));
  const JobPage page = store().List(std::nullopt, 10, "");
  ASSERT_THAT(page.jobs, SizeIs(2));
  EXPECT_EQ(page.jobs[0].id, "b") << "newest first";
}

TEST_F(DurableStore, WhatWaitedIsRecoveredInItsOrderAndWaitsOn) {
  GenerationRequest request = NewRequest("first");
  request.seed = 12;
  request.latents = HostTensor{DType::kUInt8, {4}, "\1\2\3\4"};
  request.idempotency_key = "key";
  ManualClocks clocks;
  options_.hooks = &clocks;
  Reopen().Add(NewJob("z"), request);
  clocks.Pass(hours(3));
  store().Add(NewJob("a"), NewRequest("second"));
  const auto jobs = Reopen().Recover();
  ASSERT_THAT(jobs, SizeIs(2));
  EXPECT_EQ(jobs[0].snapshot.id, "z") << "by arrival";
  EXPECT_EQ(jobs[0].request.prompt, "first");
  EXPECT_EQ(jobs[0].request.seed, 12);
  EXPECT_EQ(jobs[0].request.latents->data, "\1\2\3\4");
  EXPECT_EQ(jobs[0].request.idempotency_key, "key");
  EXPECT_EQ(jobs[0].crashes, 0);
  EXPECT_EQ(jobs[0].snapshot.attempt, 0);
  EXPECT_FALSE(store().ReadCheckpoint("z"));
  EXPECT_EQ(jobs[0].queued_at, clocks.now().steady - hours(3));
  EXPECT_THAT(store().Recover(), IsEmpty()) << "once";
  EXPECT_EQ(store().Get("a")->state, JobState::kQueued);
}

TEST_F(DurableStore, AttemptsAreCountedAndCrashesAmongThem) {
  DieAfter([](JobStore& store) {
    store.Add(NewJob("a"), NewRequest());
    store.Add(NewJob("waits"), NewRequest());
    if (store.Start("a") != 1) _exit(1);
  });
  auto jobs = Reopen().Recover();
  EXPECT_EQ(jobs[0].snapshot.state, JobState::kQueued);
  EXPECT_EQ(jobs[0].snapshot.attempt, 1);
  EXPECT_EQ(jobs[0].crashes, 1);
  EXPECT_EQ(jobs[1].crashes, 0) << "it did not run";
  EXPECT_EQ(store().Start("a"), 2);
  store().Interrupt("a");
  EXPECT_EQ(store().Get("a")->state, JobState::kQueued);
  jobs = Reopen().Recover();
  EXPECT_EQ(jobs[0].snapshot.attempt, 2);
  EXPECT_EQ(jobs[0].crashes, 1) << "a stop in order is none";
  DieAfter([](JobStore& store) {
    if (store.Start("a") != 3) _exit(1);
  });
  EXPECT_EQ(Reopen().Recover()[0].crashes, 2);
  EXPECT_EQ(Reopen().Recover()[0].crashes, 2) << "a start that runs nothing adds none";
}

// However the server ended then, and however often.
TEST_F(DurableStore, WhatRunsWhenAServerWasAskedToStopCrashedNothing) {
  DieAfter([](JobStore& store) {
    store.Add(NewJob("a"), NewRequest());
    store.Start("a");
    store.NoteStop();
  });
  for (int life = 0; life < 3; ++life) {
    DieAfter([](JobStore& store) {
      store.Start("a");
      store.NoteStop();
    });
  }
  DieAfter([](JobStore& store) { store.Start("a"); });
  const auto jobs = Reopen().Recover();
  EXPECT_EQ(jobs[0].snapshot.state, JobState::kQueued);
  EXPECT_EQ(jobs[0].snapshot.attempt, 5);
  EXPECT_EQ(jobs[0].crashes, 1) << "nobody asked the last one to stop";
}

// The one that hangs is known by then, also where somebody sees that, stops the server and gives up
// waiting.
TEST_F(DurableStore, AJobThatIsBlamedCrashedTheServerHoweverThatEndedAndNoOtherDid) {
  const auto run = [](JobStore& store) {
    for (const char* id : {"hangs", "beside"}) store.Start(id);
  };
  DieAfter([&](JobStore& store) {
    for (const char* id : {"hangs", "beside"}) store.Add(NewJob(id), NewRequest());
    run(store);
    store.NoteBlame(std::vector<std::string>{"hangs"});
    store.NoteStop();
    store.Interrupt("hangs");
  });
  const auto crashes = [&] {
    std::map<std::string, int64_t> crashes;
    for (const AcceptedJob& job : Reopen().Recover()) crashes[job.snapshot.id] = job.crashes;
    return crashes;
  };
  const std::map<std::string, int64_t> hangs_once = {{"hangs", 1}, {"beside", 0}};
  EXPECT_EQ(crashes(), hangs_once);
  DieAfter([&](JobStore& store) {  // a call hangs, no job
    run(store);
    store.NoteBlame(std::vector<std::string>());
  });
  EXPECT_EQ(crashes(), hangs_once);
  DieAfter([&](JobStore& store) {  // it went on
    run(store);
    store.NoteBlame(std::vector<std::string>{"hangs"});
    store.NoteBlame(std::nullopt);
    store.NoteStop();
  });
  EXPECT_EQ(crashes(), hangs_once);
  DieAfter([&](JobStore& store) {
    run(store);
    store.NoteBlame(std::vector<std::string>{"beside"});
  });
  const std::map<std::string, int64_t> each_once = {{"hangs", 1}, {"beside", 1}};
  EXPECT_EQ(crashes(), each_once) << "though another one had a crash already";
}

TEST_F(DurableStore, AStopIsKnownUntilTheLedgerHasWhatItStopped) {
  DieAfter([](JobStore& store) {
    store.Add(NewJob("a"), NewRequest());
    store.Start("a");
    store.NoteStop();
  });
  class DiesAtItsStart : public StoreHooks {
   public:
    void At(std::string_view edge) override {
      if (edge == "recover.before_commit") _exit(0);
    }
  } hooks;
  options_.hooks = &hooks;
  DieAfter([](JobStore&) { _exit(1); });
  options_.hooks = nullptr;
  EXPECT_EQ(Reopen().Recover()[0].crashes, 0);
}

TEST_F(DurableStore, OfSeveralThatRanTheOneThatHasACrashAlreadyHasTheNextOne) {
  DieAfter([](JobStore& store) {
    store.Add(NewJob("suspect"), NewRequest());
    store.Start("suspect");
  });
  DieAfter([](JobStore& store) {
    store.Start("suspect");
    store.Add(NewJob("beside"), NewRequest());
    store.Start("beside");
  });
  const auto jobs = Reopen().Recover();
  EXPECT_EQ(jobs[0].crashes, 2);
  EXPECT_EQ(jobs[1].crashes, 0);
}

TEST_F(DurableStore, ASuspendedJobStaysSuspended) {
  DieAfter([](JobStore& store) {
    store.Add(NewJob("a"), NewRequest());
    store.Start("a");
    store.Update("a", [](JobSnapshot& job) { job.state = JobState::kSuspended; });
  });
  const auto jobs = Reopen().Recover();
  EXPECT_EQ(jobs[0].snapshot.state, JobState::kSuspended);
  EXPECT_EQ(jobs[0].crashes, 0);
  store().Update("a", [](JobSnapshot& job) { job.state = JobState::kQueued; });
  EXPECT_EQ(Reopen().Recover()[0].snapshot.state, JobState::kQueued);
}

TEST_F(DurableStore, WhatWasAskedOfARunningJobIsKnownAfterACrash) {
  DieAfter([](JobStore& store) {
    for (const auto& [id, asked] :
         {std::pair("a", JobState::kCancelled), std::pair("b", JobState::kSuspended)}) {
      store.Add(NewJob(id), NewRequest());
      store.Start(id);
      store.Update(id, [asked = asked](JobSnapshot& job) { job.asked = asked; });
    }
  });
  const auto jobs = Reopen().Recover();
  ASSERT_THAT(jobs, SizeIs(2));
  EXPECT_EQ(jobs[0].snapshot.state, JobState::kQueued);
  EXPECT_EQ(jobs[0].snapshot.asked, JobState::kCancelled);
  EXPECT_EQ(jobs[1].snapshot.state, JobState::kSuspended) << "it has nothing to come to an end";
  EXPECT_EQ(jobs[1].snapshot.asked, std::nullopt);
}

TEST_F(DurableStore, SequencesGoOnRising) {
  Reopen().Add(NewJob("a"), NewRequest());
  store().Start("a");
  for (int i = 0; i < 1000; ++i) store().Update("a", [](JobSnapshot& job) { ++job.step; });
  uint64_t last = store().Get("a")->sequence;
  EXPECT_EQ(last, 1002u);
  for (int life = 0; life < 3; ++life) {
    Reopen();
    const uint64_t now = store().Get("a")->sequence;
    EXPECT_GT(now, last) << "although progress was not on disk";
    EXPECT_LT(now, uint64_t{1} << 53) << "what a double holds";
    EXPECT_EQ(Replay(store(), "a", last).size(), 1u) << "the present state always";
    last = now;
  }
}

TEST_F(DurableStore, KeysOutliveTheServer) {
  GenerationRequest request = NewRequest();
  request.idempotency_key = "key";
  request.deadline = std::chrono::steady_clock::now() + minutes(1);
  Reopen().Add(NewJob("a"), request);
  Reopen();
  request.deadline = std::chrono::steady_clock::now() + minutes(1);
  EXPECT_EQ(store().Add(NewJob("b"), request).first.id, "a");
  Complete(store(), "a", "bytes");
  Reopen();
  EXPECT_EQ(store().Add(NewJob("b"), request).first.id, "a") << "also when it has ended";
  request.prompt = "another";
  EXPECT_THROW(store().Add(NewJob("b"), request), Error);
}

TEST_F(DurableStore, TheLastCheckpointIsThereAndEndsWithItsJob) {
  Reopen().Add(NewJob("a"), NewRequest());
  store().Start("a");
  EXPECT_FALSE(store().ReadCheckpoint("a"));
  for (int64_t step = 1; step <= 20; ++step) {
    store().Checkpoint("a", step, std::string(1000, static_cast<char>(step)));
  }
  EXPECT_EQ(store().ReadCheckpoint("a")->first, 20) << "also before it is written";
  store().Interrupt("a");
  const auto jobs = Reopen().Recover();
  EXPECT_EQ(store().ReadCheckpoint("a")->second, std::string(1000, 20));
  EXPECT_EQ(jobs[0].checkpoint_step, 20);
  store().Start("a");
  Complete(store(), "a", "bytes");
  EXPECT_FALSE(store().ReadCheckpoint("a"));
  store().Checkpoint("a", 30, "late");
  store_.reset();
  EXPECT_THAT(FilesIn(InState("checkpoints")), IsEmpty());
}

TEST_F(DurableStore, ADamagedCheckpointIsNone) {
  Reopen().Add(NewJob("a"), NewRequest());
  store().Start("a");
  store().Checkpoint("a", 7, std::string(1000, 'x'));
  store().Interrupt("a");
  store_.reset();
  const std::string whole = FileBytes(InState("checkpoints/a"));
  for (const size_t at : {size_t{0}, size_t{9}, size_t{20}, whole.size() - 1}) {
    std::string damaged = whole;
    damaged[at] ^= 1;
    WriteBytes(InState("checkpoints/a"), damaged);
    EXPECT_EQ(Reopen().Recover()[0].checkpoint_step, 0) << at;
    EXPECT_FALSE(store().ReadCheckpoint("a")) << at;
    store_.reset();
  }
  WriteBytes(InState("checkpoints/a"), whole.substr(0, 500));
  EXPECT_EQ(Reopen().Recover()[0].checkpoint_step, 0);
  EXPECT_FALSE(store().ReadCheckpoint("a"));
  EXPECT_THAT(logger_->Text(), HasSubstr("checkpoint.damaged"));
}

TEST_F(DurableStore, LeftoversAreRemovedAtStartAndNothingElse) {
  Reopen().Add(NewJob("done"), NewRequest());
  store().Add(NewJob("waits"), NewRequest());
  Complete(store(), "done", "bytes");
  store().PutArtifact("waits", {ArtifactFormat::kGif, "video.gif", 0, ""}, "of a broken attempt");
  store_.reset();
  for (const char* name : {"artifacts/done.mp4.part", "artifacts/gone.mp4", "artifacts/done.gif",
                           "checkpoints/gone", "checkpoints/done", "checkpoints/waits.part"}) {
    WriteBytes(InState(name), "left");
  }
  Reopen();
  EXPECT_THAT(FilesIn(InState("artifacts")), ElementsAre("done.mp4"));
  EXPECT_THAT(FilesIn(InState("checkpoints")), IsEmpty());
}

TEST_F(DurableStore, ADeletedJobGoesWithItsFilesAndStaysAway) {
  Reopen().Add(NewJob("a"), NewRequest());
  Complete(store(), "a", "bytes");
  store().Delete("a");
  EXPECT_THAT(FilesIn(InState("artifacts")), IsEmpty());
  EXPECT_FALSE(Reopen().Get("a"));
}

TEST_F(DurableStore, OldJobsGoWithTheirFiles) {
  ManualClocks clocks;
  options_.hooks = &clocks;
  options_.keep_results = hours(24);
  Reopen();
  for (const char* id : {"old", "young", "read"}) {
    store().Add(NewJob(id), NewRequest());
    store().Start(id);
    store().PutArtifact(id, {ArtifactFormat::kMp4, "video.mp4", 5, "x"}, "bytes");
  }
  auto reading = store().GetArtifact("read", ArtifactFormat::kMp4);
  End("old");
  End("read");
  clocks.Pass(hours(25));
  End("young");
  EXPECT_FALSE(store().Get("old"));
  EXPECT_TRUE(store().Get("read")) << "somebody reads it";
  EXPECT_TRUE(store().Get("young"));
  reading.reset();
  Reopen();
  EXPECT_FALSE(store().Get("read")) << "at start too";
  EXPECT_TRUE(store().Get("young"));
  store_.reset();
  EXPECT_THAT(FilesIn(InState("artifacts")), ElementsAre("young.mp4"));
}

TEST_F(DurableStore, AnOldJobGoesThoughNoOtherJobEnds) {
  options_.keep_results = hours(24);
  options_.sweep_every = std::chrono::milliseconds(1);
  ManualClocks clocks;
  options_.hooks = &clocks;
  Reopen().Add(NewJob("old"), NewRequest());
  store().Start("old");
  store().PutArtifact("old", {ArtifactFormat::kMp4, "video.mp4", 5, "x"}, "bytes");
  auto reading = store().GetArtifact("old", ArtifactFormat::kMp4);
  End("old");
  clocks.Pass(hours(25));
  EXPECT_TRUE(store().Get("old")) << "it is read";
  reading.reset();
  while (store().Get("old")) std::this_thread::yield();
}

TEST_F(DurableStore, ResultsOfAJobThatFailedAreGone) {
  Reopen().Add(NewJob("a"), NewRequest());
  store().Start("a");
  store().PutArtifact("a", {ArtifactFormat::kMp4, "video.mp4", 5, "x"}, "bytes");
  EXPECT_THAT(FilesIn(InState("artifacts")), ElementsAre("a.mp4"));
  EndJob(store(), "a", JobState::kFailed);
  EXPECT_FALSE(store().GetArtifact("a", ArtifactFormat::kMp4));
  EXPECT_THAT(FilesIn(InState("artifacts")), IsEmpty());
}

TEST_F(DurableStore, ResultsOnDiskStayWithinTheirBudgetAndTakeNoMemory) {
  options_.max_artifact_bytes = 100;
  Reopen();
  for (const char* id : {"a", "b", "c"}) {
    store().Add(NewJob(id), NewRequest());
    Complete(store(), id, std::string(45, 'x'));
  }
  EXPECT_EQ(store().forgettable_bytes(), 0u);
  EXPECT_THAT(store().Get("a")->artifacts, IsEmpty());
  EXPECT_THAT(store().Get("b")->artifacts, SizeIs(1));
  store_.reset();
  EXPECT_THAT(FilesIn(InState("artifacts")), UnorderedElementsAre("b.mp4", "c.mp4"));
  options_.max_artifact_bytes = 50;
  Reopen();
  EXPECT_THAT(store().Get("b")->artifacts, IsEmpty()) << "a smaller budget counts at start";
  EXPECT_THAT(store().Get("c")->artifacts, SizeIs(1));
  store_.reset();
  EXPECT_THAT(FilesIn(InState("artifacts")), ElementsAre("c.mp4"));
}

TEST_F(DurableStore, AJobAndItsKeyOutliveTheResultsThatHadToGo) {
  options_.max_artifact_bytes = 50;
  Reopen();
  auto request = NewRequest();
  request.idempotency_key = "key";
  store().Add(NewJob("keyed"), request);
  Complete(store(), "keyed", std::string(45, 'x'));
  store().Add(NewJob("later"), NewRequest());
  Complete(store(), "later", std::string(45, 'x'));
  for (int life = 0; life < 2; ++life, Reopen()) {
    EXPECT_FALSE(store().GetArtifact("keyed", ArtifactFormat::kMp4));
    const auto [job, made] = store().Add(NewJob("again"), request);
    EXPECT_FALSE(made);
    EXPECT_EQ(job.id, "keyed");
    EXPECT_EQ(job.state, JobState::kSucceeded);
    EXPECT_THAT(job.artifacts, IsEmpty());
  }
  store().Delete("keyed");
  EXPECT_TRUE(store().Add(NewJob("again"), request).second);
}

TEST_F(DurableStore, NoNumberOfJobsCutsTheTimeForWhichTheyAreRemembered) {
  Reopen();
  auto request = NewRequest();
  request.idempotency_key = "first";
  constexpr int kJobs = 260;
  for (int i = 0; i < kJobs; ++i) {
    store().Add(NewJob("job" + std::to_string(i)), request);
    Complete(store(), "job" + std::to_string(i), "bytes");
    request.idempotency_key.clear();
  }
  request.idempotency_key = "first";
  for (int life = 0; life < 2; ++life, Reopen()) {
    EXPECT_EQ(store().Add(NewJob("again"), request).first.id, "job0");
    EXPECT_TRUE(store().GetArtifact("job0", ArtifactFormat::kMp4));
    EXPECT_THAT(store().List(std::nullopt, 1000, "").jobs, SizeIs(kJobs));
  }
}

TEST_F(DurableStore, WhatIsRememberedOfEndedJobsStaysWithinItsMemory) {
  options_.max_row_bytes = 400 << 10;
  Reopen();
  const auto add = [&](const std::string& id) {
    JobSnapshot job = NewJob(id);
    job.prompt = std::string(10 << 10, 'p');
    store().Add(job, NewRequest());
  };
  const auto count = [&] { return store().List(std::nullopt, 1000, "").jobs.size(); };
  add("made");
  Complete(store(), "made", "bytes");
  for (int i = 0; i < 40; ++i) {
    add("none" + std::to_string(i));
    EndJob(store(), "none" + std::to_string(i), JobState::kCancelled);
  }
  EXPECT_GE(count(), 10u);
  EXPECT_LE(count(), 21u);
  EXPECT_LE(store().kept_bytes(), options_.max_row_bytes);
  EXPECT_FALSE(store().Get("none0"));
  EXPECT_TRUE(store().Get("none39"));
  EXPECT_TRUE(store().GetArtifact("made", ArtifactFormat::kMp4)) << "a flood of nothing";
  for (int i = 0; i < 40; ++i) {
    add("made" + std::to_string(i));
    Complete(store(), "made" + std::to_string(i), "bytes");
  }
  EXPECT_FALSE(store().Get("made"));
  EXPECT_TRUE(store().Get("made39"));
  EXPECT_LE(store().kept_bytes(), options_.max_row_bytes);
  store().Delete("made39");
  const auto before = count();
  Reopen();
  EXPECT_EQ(count(), before);
}

TEST_F(DurableStore, AResultWhoseFileIsGoneOrCutIsNone) {
  Reopen().Add(NewJob("a"), NewRequest());
  store().Add(NewJob("b"), NewRequest());
  Complete(store(), "a", "bytes");
  Complete(store(), "b", "bytes");
  std::filesystem::remove(InState("artifacts/a.mp4"));
  EXPECT_FALSE(store().GetArtifact("a", ArtifactFormat::kMp4));
  const auto open = store().GetArtifact("b", ArtifactFormat::kMp4);
  std::filesystem::resize_file(InState("artifacts/b.mp4"), 3);
  EXPECT_THROW(ReadAll(*open), Error);
  EXPECT_FALSE(store().GetArtifact("b", ArtifactFormat::kMp4));
}

TEST_F(DurableStore, OneServerHasTheFolderAndTheOtherIsToldWho) {
  Reopen();
  StoreOptions options = options_;
  try {
    OpenJobStore(options, &logger_->logger);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(error.reason(), "STATE_DIR_IN_USE");
    EXPECT_THAT(error.what(), HasSubstr(options_.state_dir));
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(getpid())));
  }
  Reopen();  // the refused one took nothing with it
}

TEST_F(DurableStore, ALockThatADeadServerLeftHoldsNobodyUp) {
  DieAfter([](JobStore&) {});
  EXPECT_NE(FileBytes(InState("lock")), "");
  Reopen();
}

TEST_F(DurableStore, AProgramThatIsStartedFromHereDoesNotHoldTheLock) {
  Reopen();
  int descriptors = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    if (std::filesystem::read_symlink(entry.path(), error) != InState("lock")) continue;
    ++descriptors;
    EXPECT_TRUE(fcntl(std::stoi(entry.path().filename()), F_GETFD) & FD_CLOEXEC);
  }
  EXPECT_EQ(descriptors, 1);
}

TEST_F(DurableStore, AFolderThatCannotBeMadeIsNamed) {
  options_.state_dir = "/proc/denoised";
  QuietLogger logger;
  try {
    OpenJobStore(options_, &logger.logger);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(error.what(), HasSubstr("/proc/denoised"));
  }
}

// Verbs that wait together share a transaction: more jobs than commits.
class CommitCounter : public StoreHooks {
 public:
  void At(std::string_view edge) override {
    if (edge == "accept.before_commit") {
      std::unique_lock lock(mutex_);
      // The first commit waits until all other clients stand in the queue.
      if (first_) released_.wait(lock, [this] { return waiting_ >= 8; });
      first_ = false;
      ++accepts_in_commit_;
    }
    if (edge == "accept.after_commit") {
      const std::lock_guard lock(mutex_);
      largest_ = std::max(largest_, accepts_in_commit_);
      if (--left_in_commit_ <= 0) accepts_in_commit_ = 0;
    }
  }
  void Arrive() {
    {
      const std::lock_guard lock(mutex_);
      ++waiting_;
    }
    released_.notify_all();
  }
  int largest() {
    const std::lock_guard lock(mutex_);
    return largest_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable released_;
  bool first_ = true;
  int waiting_ = 0, accepts_in_commit_ = 0, left_in_commit_ = 0, largest_ = 0;
};

TEST_F(DurableStore, ClientsThatWaitTogetherShareACommit) {
  CommitCounter counter;
  options_.hooks = &counter;
  Reopen();
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&, i] {
      counter.Arrive();
      store().Add(NewJob("job" + std::to_string(i)), NewRequest());
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_THAT(store().List(std::nullopt, 100, "").jobs, SizeIs(8));
  store_.reset();
  EXPECT_GE(counter.largest(), 2);
}

// A single client that waits for nothing: what it sends while a commit is on its way is the next.
TEST_F(DurableStore, WhatOneClientSendsWithoutWaitingSharesACommit) {
  CommitCounter counter;
  options_.hooks = &counter;
  Reopen();
  std::atomic<int> kept{0};
  for (int i = 0; i < 8; ++i) {
    store().Accept(NewJob("job" + std::to_string(i)), NewRequest(), [&](JobStore::Added added) {
      kept += std::get<std::pair<JobSnapshot, bool>>(added).second;
    });
    counter.Arrive();
  }
  store_.reset();
  EXPECT_EQ(kept, 8);
  EXPECT_GE(counter.largest(), 4) << "the first commit waited for all: there are two at most";
}

// Nobody waits: a retry that comes while its job is being stored is answered with it.
TEST_F(DurableStore, ARetryThatComesDuringTheCommitIsAnsweredWithTheJob) {
  CommitCounter counter;
  options_.hooks = &counter;
  Reopen();
  GenerationRequest request = NewRequest();
  request.idempotency_key = "key";
  std::vector<std::pair<std::string, bool>> kept;
  for (const char* id : {"first", "retry", "again"}) {
    store().Accept(NewJob(id), request, [&](JobStore::Added added) {
      const auto& [job, made] = std::get<std::pair<JobSnapshot, bool>>(added);
      kept.emplace_back(job.id, made);
    });
  }
  EXPECT_THAT(kept, IsEmpty());
  for (int i = 0; i < 8; ++i) counter.Arrive();
  store_.reset();
  EXPECT_THAT(
      kept, UnorderedElementsAre(Pair("first", true), Pair("first", false), Pair("first", false)));
}

}  // namespace
}  // namespace denoised
