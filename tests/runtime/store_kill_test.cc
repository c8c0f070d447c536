// Kills at every durable edge and at any moment, and a checker with a model of its own: what was
// acknowledged is there, states only move forward, attempts grow by one a start, results are whole
// or absent.
//
// At each edge KILL_ROUNDS servers die (20, about 10 s in all; more by the environment).
// engine_kill_test kills at the edges that only an engine has.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <random>

#include "runtime/store/hooks.h"
#include "tests/runtime/store_client.h"
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

class KilledStore : public testing::Test {
 protected:
  KilledStore() {
    options_.state_dir = folder_.path();
    options_.max_finished = 1 << 20;
    void* const shared =
        mmap(nullptr, sizeof(ToldLog), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    log_ = new (shared) ToldLog();
  }
  ~KilledStore() override { munmap(log_, sizeof(ToldLog)); }

  // A server that works until it is killed; true where it was.
  bool Live(const std::string& edge, int at, uint32_t seed, int verbs) {
    const pid_t child = fork();
    if (child == 0) {
      KillAt hooks(edge, at);
      StoreOptions options = options_;
      options.hooks = &hooks;
      Logger logger(std::tmpfile());
      const auto store = OpenJobStore(options, &logger);
      StoreClient(store.get(), log_, seed).Work(verbs);
      _exit(0);
    }
    const int status = AwaitChild(child);
    EXPECT_TRUE(status == 0 || status == 128 + SIGKILL) << status;
    return status != 0;
  }

  void Check() { EXPECT_THAT(StoreChecker(options_, log_).Violations(), testing::IsEmpty()); }

  TemporaryFolder folder_;
  StoreOptions options_;
  ToldLog* log_ = nullptr;
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
