// Kills at every durable edge and at any moment, and a checker with a model of its own: what was
// acknowledged is there, states only move forward, attempts grow by one a start, results are whole
// or absent.
//
// At each edge KILL_ROUNDS servers die (20, about 10 s in all; more by the environment).
// engine_kill_test kills at the edges that only an engine has.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <map>
#include <random>

#include "runtime/loaders/sha256.h"
#include "runtime/store/hooks.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

// Ends the process without a word at the `at`-th time that it stands at `edge` ("" = at any).
class KillAt : public StoreHooks {
 public:
  KillAt(std::string edge, int at) : edge_(std::move(edge)), left_(at) {}
  void At(std::string_view edge) override {
    if ((edge_.empty() || edge == edge_) && --left_ == 0) kill(getpid(), SIGKILL);
  }

 private:
  const std::string edge_;
  std::atomic<int> left_;
};

// What a client has been told, in memory that outlives the child. Written before and after each
// verb, so that one whose answer never came may have happened or not.
struct Told {
  enum Phase : uint8_t { kNothing, kAsked, kAdded, kEnding, kEnded, kDeleting, kDeleted };
  std::atomic<uint8_t> phase;
  std::atomic<uint8_t> end;  // JobState, from kEnding on
  std::atomic<int> starts_asked, starts;
  std::atomic<int> checkpoint;  // step of the last one that was certainly kept
  char sha256[65];              // of its result, from kEnding on where it succeeds
};
constexpr int kMostJobs = 4000;
struct Log {
  std::atomic<int> jobs;
  Told told[kMostJobs];
};

std::string IdOf(int job) { return "job" + std::to_string(job); }

std::string BytesOf(std::mt19937& random) {
  std::string bytes(1 + random() % 20000, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

GenerationRequest RequestOf(int job) {
  GenerationRequest request = NewRequest("prompt " + std::to_string(job));
  request.idempotency_key = "key " + std::to_string(job);
  return request;
}

class Client {
 public:
  Client(JobStore* store, Log* log, uint32_t seed) : store_(store), log_(log), random_(seed) {}

  void Work(int verbs) {
    store_->Recover();
    for (int i = 0; i < verbs; ++i) {
      const int jobs = log_->jobs;
      if (jobs == 0 || random_() % 3 == 0) {
        Add();
      } else {
        Advance(jobs - 1 - static_cast<int>(random_() % std::min(jobs, 8)));
      }
    }
  }

 private:
  void Add() {
    if (log_->jobs == kMostJobs) return;
    const int job = log_->jobs;
    log_->told[job].phase = Told::kAsked;
    log_->jobs = job + 1;
    store_->Add(NewJob(IdOf(job)), RequestOf(job));
    log_->told[job].phase = Told::kAdded;
  }
  void Advance(int job) {
    Told& told = log_->told[job];
    const std::string id = IdOf(job);
    const auto now = store_->Get(id);
    if (told.phase == Told::kEnded && random_() % 4 == 0) {
      told.phase = Told::kDeleting;
      store_->Delete(id);
      told.phase = Told::kDeleted;
    }
    if (!now || IsTerminal(now->state) || told.phase != Told::kAdded) return;
    if (now->state != JobState::kRunning) {
      ++told.starts_asked;
      store_->Start(id);
      ++told.starts;
      return;
    }
    switch (random_() % 4) {
      case 0:
        store_->Update(id, [](JobSnapshot& snapshot) { ++snapshot.step; });
        break;
      case 1: {
        const int step = told.checkpoint + 1;
        store_->Checkpoint(id, step, std::string(5000, static_cast<char>(step)));
        store_->Interrupt(id);
        told.checkpoint = step;
        break;
      }
      default:
        End(&told, id);
    }
  }
  void End(Told* told, const std::string& id) {
    const JobState end = random_() % 2 == 0 ? JobState::kSucceeded : JobState::kFailed;
    told->end = static_cast<uint8_t>(end);
    std::vector<ArtifactInfo> artifacts;
    if (end == JobState::kSucceeded) {
      const std::string bytes = BytesOf(random_), digest = Sha256Hex(bytes);
      std::copy(digest.begin(), digest.end(), told->sha256);
      artifacts = {{ArtifactFormat::kMp4, "video.mp4", bytes.size(), digest}};
      store_->PutArtifact(id, artifacts[0], bytes);
    }
    told->phase = Told::kEnding;
    store_->Update(id, [&](JobSnapshot& job) {
      job.state = end;
      job.artifacts = artifacts;
      job.finished_at = std::chrono::system_clock::now();
    });
    told->phase = Told::kEnded;
  }

  JobStore* const store_;
  Log* const log_;
  std::mt19937 random_;
};

class KilledStore : public testing::Test {
 protected:
  KilledStore() {
    options_.state_dir = folder_.path();
    options_.max_finished = 1 << 20;
    void* const shared =
        mmap(nullptr, sizeof(Log), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    log_ = new (shared) Log();
  }
  ~KilledStore() override { munmap(log_, sizeof(Log)); }

  // A server that works until it is killed; true where it was.
  bool Live(const std::string& edge, int at, uint32_t seed, int verbs) {
    const pid_t child = fork();
    if (child == 0) {
      KillAt hooks(edge, at);
      StoreOptions options = options_;
      options.hooks = &hooks;
      Logger logger(std::tmpfile());
      const auto store = OpenJobStore(options, &logger);
      Client(store.get(), log_, seed).Work(verbs);
      _exit(0);
    }
    const int status = AwaitChild(child);
    EXPECT_TRUE(status == 0 || status == 128 + SIGKILL) << status;
    return status != 0;
  }

  void Check() {
    CheckIntegrity();
    QuietLogger logger;  // with the thread that it has: none may run where a child is forked
    const auto store = OpenJobStore(options_, &logger.logger);
    std::map<std::string, AcceptedJob> recovered;
    for (AcceptedJob& job : store->Recover()) recovered[job.snapshot.id] = std::move(job);
    for (int job = 0; job < log_->jobs; ++job) CheckJob(*store, recovered, job);
    for (const std::string& name : FilesIn(folder_.path() / "artifacts")) {
      EXPECT_FALSE(name.ends_with(".part")) << name;
    }
  }

 private:
  void CheckIntegrity() {
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open((folder_.path() / "jobs.sqlite").c_str(), &database), SQLITE_OK);
    std::string answer;
    sqlite3_exec(
        database, "PRAGMA integrity_check",
        [](void* to, int, char** text, char**) {
          *static_cast<std::string*>(to) += text[0];
          return 0;
        },
        &answer, nullptr);
    sqlite3_close(database);
    EXPECT_EQ(answer, "ok");
  }

  void CheckJob(JobStore& store, const std::map<std::string, AcceptedJob>& recovered, int number) {
    Told& told = log_->told[number];
    const std::string id = IdOf(number);
    const auto job = store.Get(id);
    const uint8_t phase = told.phase;
    if (!job) {
      EXPECT_TRUE(phase == Told::kAsked || phase == Told::kDeleting || phase == Told::kDeleted)
          << id << " was acknowledged and is gone";
      if (phase == Told::kDeleting) told.phase = Told::kDeleted;
      return;
    }
    EXPECT_NE(phase, Told::kDeleted) << id;
    const auto again = store.Add(NewJob("other" + std::to_string(number)), RequestOf(number));
    EXPECT_EQ(again.first.id, id) << "one key, one job";
    if (phase == Told::kAsked) told.phase = Told::kAdded;
    if (phase == Told::kEnded || phase == Told::kDeleting) {
      EXPECT_EQ(job->state, static_cast<JobState>(told.end.load())) << id << " has changed its end";
      if (phase == Told::kDeleting) told.phase = Told::kEnded;
    }
    EXPECT_GE(job->attempt, told.starts) << id;
    EXPECT_LE(job->attempt, told.starts_asked) << id;
    told.starts = told.starts_asked = static_cast<int>(job->attempt);
    CheckEnd(store, *job, &told);
    if (IsTerminal(job->state)) return;
    if (phase == Told::kEnding) told.phase = Told::kAdded;  // its end was never told
    const AcceptedJob& accepted = recovered.at(id);
    EXPECT_EQ(accepted.request.prompt, RequestOf(number).prompt);
    EXPECT_GE(accepted.checkpoint_step, told.checkpoint) << id;
    if (accepted.checkpoint_step > 0) {
      EXPECT_EQ(store.ReadCheckpoint(id)->second,
                std::string(5000, static_cast<char>(accepted.checkpoint_step)));
    }
    told.checkpoint = static_cast<int>(accepted.checkpoint_step);
  }

  void CheckEnd(JobStore& store, const JobSnapshot& job, Told* told) {
    const auto artifact = store.GetArtifact(job.id, ArtifactFormat::kMp4);
    if (job.state == JobState::kSucceeded) {
      ASSERT_TRUE(artifact) << job.id;
      EXPECT_EQ(Sha256Hex(ReadAll(*artifact)), job.artifacts.at(0).sha256);
      EXPECT_EQ(job.artifacts.at(0).sha256, std::string(told->sha256, 64));
    } else {
      EXPECT_FALSE(artifact) << job.id << " has half an end";
    }
    if (IsTerminal(job.state) && told->phase == Told::kEnding) told->phase = Told::kEnded;
  }

 protected:
  TemporaryFolder folder_;
  StoreOptions options_;
  Log* log_ = nullptr;
};

class KilledStoreAt : public KilledStore, public testing::WithParamInterface<const char*> {};

TEST_P(KilledStoreAt, NothingIsLost) {
  int killed = 0;
  for (int round = 0; round < KillRounds(); ++round) {
    killed += Live(GetParam(), 1 + round % 5, 1 + static_cast<uint32_t>(round), 400) ? 1 : 0;
    Check();
    ASSERT_FALSE(HasFailure()) << "round " << round;
  }
  EXPECT_GE(killed, KillRounds() * 4 / 5);
}

INSTANTIATE_TEST_SUITE_P(Edges, KilledStoreAt,
                         testing::Values("accept.before_commit", "accept.after_commit",
                                         "start.before_commit", "start.after_commit",
                                         "change.before_commit", "change.after_commit",
                                         "finish.before_commit", "finish.after_commit",
                                         "forget.before_commit", "forget.after_commit",
                                         "artifact.half_written", "artifact.before_rename",
                                         "artifact.after_rename", "checkpoint.half_written",
                                         "checkpoint.before_rename", "checkpoint.after_rename"),
                         [](const auto& edge) { return NameOfEdge(edge.param); });

TEST_F(KilledStore, NothingIsLostInManyLivesOfRandomLengths) {
  std::mt19937 random(5);
  int killed = 0;
  for (uint32_t life = 0; life < 120; ++life) {
    killed += Live("", 1 + static_cast<int>(random() % 60), 1000 + life, 30) ? 1 : 0;
    Check();
    ASSERT_FALSE(HasFailure()) << "life " << life;
  }
  EXPECT_GE(killed, 60);
  EXPECT_GE(log_->jobs, 200);
}

// The start itself may be killed too, and the next one goes on.
TEST_F(KilledStore, AStartThatIsKilledLosesNothing) {
  Live("none", 1, 1, 60);
  for (int time = 1; time <= 3; ++time) {
    Live("recover.before_commit", 1, 10 + time, 20);
    Live("recover.after_commit", 1, 20 + time, 20);
    Check();
  }
}

}  // namespace
}  // namespace denoised
