// Jobs that take their server down: given up after the second time, and nobody else with them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "tests/runtime/fake_engine.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using testing::ElementsAre;

constexpr int kCrashed = 9;
constexpr int64_t kSteps = 40, kPoisonStep = 30;

// Servers on one state folder. Those that die are children, forked while no thread runs here.
class EngineCrash : public testing::Test {
 protected:
  EngineOptions Options() const {
    EngineOptions options = KeepingIn(folder_.path());
    options.before_work = before_work_;
    return options;
  }

  // A server that lives until its work is done, or a job takes it down; whether one did.
  bool Crashes(const std::function<void(FakeEngine&)>& work = {}) {
    const pid_t child = fork();
    if (child == 0) {
      bool done = false;
      {
        FakeEngine fake(Options(), /*steps_open=*/!work, 2, [](FakeModel* model) {
          model->on_step = [](const RunRequest& run, int64_t step) {
            if (run.prompt.starts_with("poison") && step == kPoisonStep) _exit(kCrashed);
          };
        });
        if (work) work(fake);
        done = fake.WaitIdle();
      }
      _exit(done ? 0 : 1);
    }
    const int status = AwaitChild(child);
    EXPECT_TRUE(status == 0 || status == kCrashed) << status;
    return status == kCrashed;
  }

  // All of them in one forward, then they run.
  static void RunTogether(FakeEngine& fake, const std::vector<std::string>& prompts) {
    SharingPays(&fake.model);
    for (const std::string& prompt : prompts) {
      fake.Submit(prompt, [](auto& request) {
        request.num_inference_steps = kSteps;
        request.priority = Priority::kBatch;
      });
    }
    for (int64_t forward = 1;; ++forward) {
      if (!fake.model.steps.AwaitArrival(forward)) _exit(1);
      if (fake.model.forwards().back().size() == prompts.size()) break;
      fake.model.steps.Allow(1);
    }
    fake.model.on_unit = {};
    fake.model.steps.Open();
  }
  bool CrashesTogether(const std::vector<std::string>& prompts) {
    return Crashes([&](FakeEngine& fake) { RunTogether(fake, prompts); });
  }

  // Prompt -> state or reason, once all has ended.
  std::map<std::string, std::string> Ends() {
    FakeEngine fake(Options());
    EXPECT_TRUE(fake.WaitIdle());
    std::map<std::string, std::string> ends;
    for (const JobSnapshot& job : fake.engine->jobs().List(std::nullopt, 100, "").jobs) {
      ends[job.prompt] = job.error ? job.error->reason : std::string(JobStateName(job.state));
    }
    return ends;
  }

  const TemporaryFolder folder_;
  std::function<void(std::function<void()> note_stop)> before_work_;
};

TEST_F(EngineCrash, APoisonJobIsGivenUpAndThoseThatRanBesideItSucceed) {
  ASSERT_TRUE(CrashesTogether({"first", "poison", "last"}));
  int crashes = 1;
  while (crashes < 10 && Crashes()) ++crashes;
  EXPECT_EQ(crashes, 2);
  const std::map<std::string, std::string> expected = {
      {"first", "SUCCEEDED"}, {"poison", "POISON"}, {"last", "SUCCEEDED"}};
  EXPECT_EQ(Ends(), expected);
}

TEST_F(EngineCrash, EachOfSeveralPoisonJobsIsFoundByItself) {
  ASSERT_TRUE(CrashesTogether({"first", "poison", "poison too", "last"}));
  int crashes = 1;
  while (crashes < 10 && Crashes()) ++crashes;
  EXPECT_EQ(crashes, 3);
  const std::map<std::string, std::string> expected = {{"first", "SUCCEEDED"},
                                                       {"poison", "POISON"},
                                                       {"poison too", "POISON"},
                                                       {"last", "SUCCEEDED"}};
  EXPECT_EQ(Ends(), expected);
}

// New ones that are due first run beside it; the other suspects wait for its end.
TEST_F(EngineCrash, AJobThatRanAtACrashRunsInForwardsOfItsOwnAndApartFromOtherSuspects) {
  ASSERT_TRUE(CrashesTogether({"suspect", "poison"}));
  FakeEngine fake(Options(), /*steps_open=*/false);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  // Arrivals of jobs that are recovered are by the real clock.
  fake.clock.Advance(std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - fake.clock.now()));
  for (const char* prompt : {"new", "newer"}) {
    fake.Submit(prompt, [](auto& request) {
      request.num_inference_steps = 3;
      request.priority = Priority::kUrgent;
    });
  }
  const auto jobs = fake.engine->jobs().List(JobState::kQueued, 100, "").jobs;
  const auto held = std::ranges::find_if(jobs, [](auto& job) { return job.prompt == "poison"; });
  ASSERT_NE(held, jobs.end());
  EXPECT_EQ(fake.Get(held->id).queue_position, 3) << "the suspect and both new ones";
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.finished[JobState::kSucceeded], 4) << "nothing is poison here";
  std::vector<std::string> order;  // who ran, "new" for one or both of those
  for (const std::vector<std::string>& prompts : fake.model.forwards()) {
    const bool fresh = std::ranges::all_of(
        prompts, [](const std::string& prompt) { return prompt.starts_with("new"); });
    ASSERT_TRUE(fresh || prompts.size() == 1) << prompts.size();
    const std::string who = fresh ? "new" : prompts.front();
    if (order.empty() || order.back() != who) order.push_back(who);
  }
  EXPECT_THAT(order, ElementsAre("suspect", "new", "suspect", "poison"));
}

// A signal between the load and the first unit.
TEST_F(EngineCrash, AStopThatIsNotedBeforeAnyWorkBeginsLetsTheNextCrashCountForNobody) {
  ASSERT_TRUE(Crashes([](FakeEngine& fake) {
    fake.Submit("poison", [](auto& request) { request.num_inference_steps = kSteps; });
    fake.model.steps.Open();
  }));
  before_work_ = [](const std::function<void()>& note_stop) { note_stop(); };
  ASSERT_TRUE(Crashes());
  before_work_ = {};
  EXPECT_TRUE(Crashes()) << "one crash was counted until now";
  EXPECT_FALSE(Crashes());
  EXPECT_EQ(Ends().at("poison"), "POISON");
}

}  // namespace
}  // namespace denoised
