// Who stops a job, puts it aside, forgets it, or ends the engine, against each other at every stage
// of the job: whatever wins, it is one of them, and nothing of the others is left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <latch>
#include <set>
#include <thread>

#include "tests/runtime/fake_engine.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

enum class Stage { kQueued, kBeginning, kFirstStep, kLastStep, kDecoding, kPublishing, kEnded };
enum class Verb { kCancel, kSuspend, kResume, kDelete, kDeadline, kDrain, kEnd };

constexpr Stage kStages[] = {Stage::kQueued,   Stage::kBeginning, Stage::kFirstStep,
                             Stage::kLastStep, Stage::kDecoding,  Stage::kPublishing,
                             Stage::kEnded};
constexpr Verb kVerbs[] = {Verb::kCancel,   Verb::kSuspend, Verb::kResume, Verb::kDelete,
                           Verb::kDeadline, Verb::kDrain,   Verb::kEnd};
constexpr const char* kStageNames[] = {
    "queued",     "beginning", "in its first step", "in its last step", "decoding",
    "publishing", "ended"};
constexpr const char* kVerbNames[] = {"cancel",   "suspend", "resume", "delete",
                                      "deadline", "drain",   "end"};

EngineOptions OneAtATime(const std::string& state_dir) {
  EngineOptions options;
  options.max_running_jobs = 1;
  options.state_dir = state_dir;
  return options;
}

// A job that is held at a stage, and what becomes of it.
class Race {
 public:
  Race(Stage stage, const std::string& state_dir) : fake_(OneAtATime(state_dir)), stage_(stage) {
    Hold();
  }
  ~Race() { LetGo(); }

  // Both at once; each returns while the job is held: nobody waits for the device.
  void Act(Verb one, Verb other) {
    std::latch start(2);
    std::thread thread([&] {
      start.arrive_and_wait();
      Do(one);
    });
    start.arrive_and_wait();
    Do(other);
    thread.join();
  }
  void ActInTurn(Verb one, Verb other) {
    Do(one);
    Do(other);
  }

  void Settle() {
    LetGo();
    if (used(Verb::kEnd)) fake_.engine->Shutdown();
    ASSERT_TRUE(used(Verb::kEnd) || fake_.WaitIdle());
  }

  void Check() {
    EXPECT_EQ(fake_.model.live_runs, 0);
    EXPECT_EQ(fake_.engine->running_jobs(), 0);
    const std::vector<JobSnapshot> history = fake_.store->History(id_);
    CheckHistory(history);
    const auto job = fake_.engine->jobs().Get(id_);
    EXPECT_EQ(job.has_value(), !accepted(Verb::kDelete));
    CheckState(history.back());
    CheckEnds(IsTerminal(history.back().state));
  }

  // Where it waits for somebody, it goes on as if nothing had been.
  void GoOn() {
    const auto job = fake_.engine->jobs().Get(id_);
    if (!job || job->state != JobState::kSuspended || leaves()) return;
    EXPECT_FALSE(fake_.engine->Resume(id_));
    const JobSnapshot end = fake_.AwaitEnd(id_);
    EXPECT_EQ(end.state, used(Verb::kDeadline) ? JobState::kFailed : JobState::kSucceeded);
    CheckHistory(fake_.store->History(id_));
  }

  JobSnapshot Last() { return fake_.store->History(id_).back(); }
  const std::string& id() const { return id_; }
  bool used(Verb verb) const { return used_.contains(verb); }
  // What does not run stays as it is.
  bool leaves() const { return used(Verb::kDrain) || used(Verb::kEnd); }

 private:
  void Hold() {
    fake_.model.on_begin = [this](const RunRequest& run) {
      if (run.prompt == "raced") begin_.Pass();
    };
    if (stage_ == Stage::kQueued || stage_ == Stage::kFirstStep || stage_ == Stage::kLastStep) {
      fake_.model.steps.Close();
    }
    fake_.store->on_artifact = [this](const ArtifactInfo&) { publish_.Pass(); };
    if (stage_ == Stage::kBeginning) begin_.Close();
    if (stage_ == Stage::kDecoding) fake_.model.finish.Close();
    if (stage_ == Stage::kPublishing) publish_.Close();
    if (stage_ == Stage::kQueued) {
      other_ = fake_.Submit("other");
      ASSERT_TRUE(fake_.model.steps.AwaitArrival(1));
    }
    id_ = fake_.Submit("raced", [&](GenerationRequest& request) {
      request.formats = {ArtifactFormat::kNpy};
      request.deadline = fake_.clock.now() + std::chrono::hours(1);
    });
    AwaitStage();
  }
  void AwaitStage() {
    if (stage_ == Stage::kLastStep) fake_.model.steps.Allow(2);
    const bool there = stage_ == Stage::kBeginning    ? begin_.AwaitArrival(1)
                       : stage_ == Stage::kFirstStep  ? fake_.model.steps.AwaitArrival(1)
                       : stage_ == Stage::kLastStep   ? fake_.model.steps.AwaitArrival(3)
                       : stage_ == Stage::kDecoding   ? fake_.model.finish.AwaitArrival(1)
                       : stage_ == Stage::kPublishing ? publish_.AwaitArrival(1)
                                                      : true;
    EXPECT_TRUE(there);
    if (stage_ == Stage::kEnded) fake_.AwaitEnd(id_);
  }
  void LetGo() {
    begin_.Open();
    fake_.model.steps.Open();
    fake_.model.finish.Open();
    publish_.Open();
  }

  void Do(Verb verb) {
    const bool took = Took(verb);
    const std::lock_guard lock(mutex_);
    used_.insert(verb);
    if (took) accepted_.insert(verb);
  }
  bool Took(Verb verb) {
    switch (verb) {
      case Verb::kCancel:
        return fake_.engine->Cancel(id_) == Engine::CancelResult::kCancelling;
      case Verb::kSuspend:
        return !fake_.engine->Suspend(id_);
      case Verb::kResume:
        return !fake_.engine->Resume(id_);
      case Verb::kDelete:
        return !fake_.engine->Delete(id_);
      case Verb::kDeadline:
        fake_.clock.Advance(std::chrono::hours(2));
        return true;
      case Verb::kDrain:
        fake_.engine->BeginNoMore();
        return true;
      case Verb::kEnd:
        fake_.engine->Stop();
        return true;
    }
    return false;
  }
  bool accepted(Verb verb) const { return accepted_.contains(verb); }

  void CheckHistory(const std::vector<JobSnapshot>& history) {
    ASSERT_FALSE(history.empty());
    for (size_t i = 0; i < history.size(); ++i) {
      EXPECT_EQ(history[i].sequence, i + 1) << "no gap";
      EXPECT_TRUE(!IsTerminal(history[i].state) || i + 1 == history.size())
          << "one terminal state, last";
    }
  }

  void CheckState(const JobSnapshot& job) {
    const bool late = used(Verb::kDeadline), ended = used(Verb::kEnd);
    const bool kept = fake_.store->durable();
    SCOPED_TRACE(JobStateName(job.state));
    if (accepted(Verb::kCancel)) {
      EXPECT_EQ(job.state, JobState::kCancelled) << "an accepted cancel is kept";
    }
    switch (job.state) {
      case JobState::kQueued:
        EXPECT_TRUE(leaves() && kept);
        EXPECT_TRUE(!accepted(Verb::kSuspend) || accepted(Verb::kResume))
            << "an accepted suspension is kept";
        break;
      case JobState::kRunning:
        ADD_FAILURE() << "nothing runs any more";
        break;
      case JobState::kSuspended:
        EXPECT_TRUE(accepted(Verb::kSuspend));
        break;
      case JobState::kSucceeded:
        EXPECT_TRUE(!accepted(Verb::kSuspend) || accepted(Verb::kResume) ||
                    stage_ == Stage::kDecoding)  // it ends its present unit, here its last one
            << "what was put aside stays there";
        EXPECT_EQ(job.artifacts.size(), 1u);
        break;
      case JobState::kFailed:
        EXPECT_TRUE(late);
        EXPECT_EQ(job.error->code, StatusCode::kDeadlineExceeded);
        break;
      case JobState::kCancelled:
        EXPECT_TRUE(accepted(Verb::kCancel) || (ended && !kept));
        break;
    }
  }

  // Observers hear of the end of this job, and of the other one's where there is one, once.
  void CheckEnds(bool ended) {
    int64_t ends = 0;
    for (const auto& [state, jobs] : fake_.observer.finished) ends += jobs;
    if (!other_.empty()) ends -= IsTerminal(fake_.Get(other_).state) ? 1 : 0;
    EXPECT_EQ(ends, ended ? 1 : 0);
  }

  FakeEngine fake_;
  Gate begin_{true}, publish_{true};
  const Stage stage_;
  std::string id_, other_;
  std::mutex mutex_;
  std::set<Verb> used_, accepted_;
};

class EngineRace : public testing::TestWithParam<Stage> {
 protected:
  enum class Pairs : uint8_t { kUnordered, kOrdered };
  static void ForEachPair(Pairs pairs, const std::function<void(Verb, Verb)>& race) {
    for (size_t one = 0; one < std::size(kVerbs); ++one) {
      for (size_t other = pairs == Pairs::kOrdered ? 0 : one; other < std::size(kVerbs); ++other) {
        SCOPED_TRACE(std::string(kVerbNames[one]) + " and " + kVerbNames[other] + " while " +
                     kStageNames[static_cast<int>(GetParam())]);
        race(kVerbs[one], kVerbs[other]);
        if (HasFatalFailure()) return;
      }
    }
  }
};

TEST_P(EngineRace, InMemoryOneOfThemWins) {
  ForEachPair(Pairs::kUnordered, [](Verb one, Verb other) {
    Race race(GetParam(), "");
    race.Act(one, other);
    race.Settle();
    race.Check();
    race.GoOn();
  });
}

// And what the engine's end, or a drain before it, leaves goes on in the next one.
void RaceOnDisk(Stage stage, const std::function<void(Race&)>& act) {
  const TemporaryFolder folder;
  std::string id;
  JobSnapshot last;
  {
    Race race(stage, folder.path());
    act(race);
    race.Settle();
    race.Check();
    race.GoOn();
    if (!race.leaves() || race.used(Verb::kDeadline)) return;
    id = race.id();
    last = race.Last();
  }
  FakeEngine next(OneAtATime(folder.path()));
  const auto job = next.engine->jobs().Get(id);
  if (!job) return;  // deleted
  if (last.state == JobState::kQueued) {
    EXPECT_EQ(next.AwaitEnd(id).state, JobState::kSucceeded);
  } else {
    EXPECT_EQ(job->state, last.state);
  }
}

TEST_P(EngineRace, OnDiskOneOfThemWinsAndTheNextEngineKnows) {
  ForEachPair(Pairs::kUnordered, [](Verb one, Verb other) {
    RaceOnDisk(GetParam(), [&](Race& race) { race.Act(one, other); });
  });
}

TEST_P(EngineRace, OnDiskOneAfterTheOtherAndTheNextEngineKnows) {
  ForEachPair(Pairs::kOrdered, [](Verb one, Verb other) {
    RaceOnDisk(GetParam(), [&](Race& race) { race.ActInTurn(one, other); });
  });
}

INSTANTIATE_TEST_SUITE_P(AtEachStage, EngineRace, testing::ValuesIn(kStages));

}  // namespace
}  // namespace denoised
