// Servers that are killed inside the engine's own edges, with a durable store below: mid step, with
// a file encoded and not written, with an end committed that nobody was told of, and those between.
// store_kill_test kills at all edges of the store's verbs.
//
// At each edge KILL_ROUNDS servers die (20, about 5 s in all; more by the environment). The next
// one ends what they left, and a client that outlives them all checks what it was told.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "runtime/loaders/sha256.h"
#include "runtime/store/hooks.h"
#include "tests/runtime/fake_engine.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

constexpr int kJobs = 2;            // of a server
constexpr int kMostRounds = 500;    // of an edge
constexpr unsigned kTooLong = 120;  // seconds, of one server

int Rounds() { return std::min(KillRounds(), kMostRounds); }

// What the client was told of a job, in memory that outlives a server.
struct Told {
  std::atomic<bool> asked, accepted, ended;
  std::atomic<uint64_t> sequence;  // the last that it saw
  char id[65];                     // once it is accepted
};
struct Log {
  Told told[kMostRounds][kJobs];
  std::atomic<bool> reached;  // the edge, by the last server
};

std::string KeyOf(int round, int job) {
  return "key." + std::to_string(round) + "." + std::to_string(job);
}

GenerationRequest RequestOf(int round, int job) {
  GenerationRequest request = SmallRequest(KeyOf(round, job));
  request.idempotency_key = KeyOf(round, job);
  request.width = 64 + 32 * job;  // so that they share no step
  return request;
}

// Ends the process without a word at the `at`-th time that it stands at `edge`.
class Death : public StoreHooks {
 public:
  Death(Log* log, std::string edge, int at) : log_(log), edge_(std::move(edge)), left_(at) {}
  void At(std::string_view edge) override {
    if (edge != edge_ || --left_ != 0) return;
    log_->reached = true;
    kill(getpid(), SIGKILL);
  }
  // A checkpoint is not waited for: its job stays as it is until then.
  bool is_of_checkpoints() const { return edge_.starts_with("checkpoint"); }

 private:
  Log* const log_;
  const std::string edge_;
  std::atomic<int> left_;
};

class KilledEngine : public testing::TestWithParam<const char*> {
 protected:
  KilledEngine() {
    options_ = KeepingIn(folder_.path());
    options_.max_finished_jobs = kMostRounds * kJobs;
    void* const shared =
        mmap(nullptr, sizeof(Log), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    log_ = new (shared) Log();
  }
  ~KilledEngine() override { munmap(log_, sizeof(Log)); }

  // Everything with a thread is in a child, so that each is forked from one that has none. What it
  // fails is its status.
  int InChild(const std::function<void()>& server) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(kTooLong);
      server();
      std::fflush(nullptr);
      _exit(HasFailure() ? 1 : 0);
    }
    return AwaitChild(child);
  }

  // Serves the jobs of a round until it dies.
  void Live(int round, const std::string& edge, int at) {
    Death death(log_, edge, at);
    FakeEngine fake(options_, /*steps_open=*/false, 2, [&](FakeModel* model) {
      model->store_hooks = &death;
      model->on_step = [&](const RunRequest&, int64_t) { death.At("mid_step"); };
    });
    fake.store->on_artifact = [&](const ArtifactInfo&) {
      while (death.is_of_checkpoints()) pause();
      death.At("after_encode");
    };
    fake.store->on_change = [&](const JobSnapshot& job) { Hear(round, job); };
    for (int job = 0; job < kJobs; ++job) {
      Told& told = log_->told[round][job];
      told.asked = true;
      const std::string id = SubmitTo(fake, RequestOf(round, job));
      std::memcpy(told.id, id.c_str(), id.size() + 1);
      told.accepted = true;
    }
    fake.model.steps.Open();
    fake.WaitIdle();
  }
  std::string SubmitTo(FakeEngine& fake, GenerationRequest request) {
    const auto result = fake.engine->Submit(std::move(request));
    if (const auto* error = std::get_if<Error>(&result)) {
      ADD_FAILURE() << error->what();
      return "";
    }
    return std::get<JobSnapshot>(result).id;
  }
  void Hear(int round, const JobSnapshot& job) {
    for (Told& told : log_->told[round]) {
      if (!told.accepted || job.id != told.id) continue;
      told.sequence = std::max<uint64_t>(told.sequence, job.sequence);
      if (IsTerminal(job.state)) told.ended = true;
    }
  }

  // The next server, which lives.
  void Check(int rounds) {
    FakeEngine fake(options_, /*steps_open=*/false);
    for (const std::string& name : FilesIn(folder_.path() / "artifacts")) {
      EXPECT_FALSE(name.ends_with(".part")) << name;
    }
    std::set<std::string> ids;
    for (int round = 0; round < rounds; ++round) {
      for (int job = 0; job < kJobs; ++job) {
        if (log_->told[round][job].asked) ids.insert(CheckAtStart(fake, round, job));
      }
    }
    fake.model.steps.Open();
    for (const std::string& id : ids) CheckEnd(fake, id);
    EXPECT_EQ(fake.engine->jobs().List(std::nullopt, kMostRounds * kJobs, "").jobs.size(),
              ids.size())
        << "one key, one job";
  }
  std::string CheckAtStart(FakeEngine& fake, int round, int job) {
    const Told& told = log_->told[round][job];
    if (told.accepted) {
      const auto now = fake.engine->jobs().Get(told.id);
      EXPECT_TRUE(now) << told.id << " was accepted and is gone";
      if (now && told.ended) {
        EXPECT_EQ(now->state, JobState::kSucceeded) << told.id << " has changed its end";
      }
      if (now) {
        EXPECT_GE(now->sequence, told.sequence) << told.id;
      }
    }
    const std::string id = SubmitTo(fake, RequestOf(round, job));  // the client asks again
    if (told.accepted) {
      EXPECT_EQ(id, told.id);
    }
    return id;
  }
  void CheckEnd(FakeEngine& fake, const std::string& id) {
    const JobSnapshot job = fake.AwaitEnd(id);
    EXPECT_EQ(job.state, JobState::kSucceeded) << id;
    EXPECT_LE(job.attempt, 2) << id;
    EXPECT_EQ(job.step, job.num_steps) << id;
    const auto result = fake.engine->jobs().GetArtifact(id, ArtifactFormat::kSafetensors);
    ASSERT_TRUE(result) << id;
    ASSERT_EQ(job.artifacts.size(), 1u) << id;
    EXPECT_EQ(Sha256Hex(ReadAll(*result)), job.artifacts[0].sha256) << id;
  }

  const TemporaryFolder folder_;
  EngineOptions options_;
  Log* log_ = nullptr;
};

TEST_P(KilledEngine, LosesNothingAndEndsEverything) {
  for (int round = 0; round < Rounds(); ++round) {
    log_->reached = false;
    const int at = std::string(GetParam()).starts_with("checkpoint") ? 1 : 1 + round % kJobs;
    ASSERT_EQ(InChild([&] { Live(round, GetParam(), at); }), 128 + SIGKILL) << "round " << round;
    ASSERT_TRUE(log_->reached);
    ASSERT_EQ(InChild([&] { Check(round + 1); }), 0) << "round " << round;
  }
}

// In the order in which a job comes to them. "Before its event" a job's end is committed, and no
// reader has seen it.
INSTANTIATE_TEST_SUITE_P(Edges, KilledEngine,
                         testing::Values("accept.before_commit", "accept.after_commit",
                                         "start.after_commit", "mid_step",
                                         "checkpoint.half_written", "after_encode",
                                         "artifact.before_rename", "artifact.after_rename",
                                         "finish.before_commit", "finish.after_commit"),
                         [](const auto& edge) {
                           const std::string name = NameOfEdge(edge.param);
                           return name == "finish_after_commit" ? name + "_before_its_event" : name;
                         });

}  // namespace
}  // namespace denoised
