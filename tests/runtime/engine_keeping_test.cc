// Jobs that are put aside, and jobs that outlive their engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "runtime/engine/checkpoint.h"
#include "runtime/store/hooks.h"
#include "tests/runtime/fake_engine.h"
#include "tests/runtime/leases.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A state folder of its own.
class EngineKeeping : public testing::Test {
 protected:
  EngineOptions Options() const { return KeepingIn(folder_.path()); }
  const TemporaryFolder folder_;
};

void Steps(GenerationRequest& request, int64_t steps) { request.num_inference_steps = steps; }

// Every step of self-attention is on the receipt once.
void ExpectStepsCovered(const JobSnapshot& job, int64_t steps) {
  int64_t next = 0;
  for (const ReceiptEntry& row : job.receipt.entries) {
    if (row.role != AttentionRole::kSelf) continue;
    EXPECT_EQ(row.first_step, next);
    next = row.last_step + 1;
  }
  EXPECT_EQ(next, steps);
}

TEST(EngineSuspend, ARunningJobGivesBackItsStateAndGoesOnFromThere) {
  FakeEngine fake;
  fake.model.steps.Close();
  const std::string id = fake.Submit("aside", [](auto& r) { Steps(r, 5); });
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  EXPECT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle()) << "a suspended job is no work";
  EXPECT_EQ(fake.Get(id).state, JobState::kSuspended);
  EXPECT_EQ(fake.Get(id).step, 1);
  EXPECT_EQ(fake.model.live_runs, 0);
  EXPECT_FALSE(fake.engine->Resume(id));
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(job.attempt, 2);
  EXPECT_EQ(fake.model.steps_run, 5) << "no step runs twice";
  ExpectStepsCovered(job, 5);
}

// Of its deadline another thread takes care, whose looks are what time is counted by here.
TEST(EngineSuspend, WhatIsPutAsideDoesNotWakeTheEnginesThread) {
  FakeEngine fake(EngineOptions(), /*steps_open=*/false);
  std::atomic<std::thread::id> engine;
  fake.model.on_begin = [&](const RunRequest&) { engine = std::this_thread::get_id(); };
  const std::string id = fake.Submit("aside", [&](GenerationRequest& request) {
    request.deadline = fake.clock.now() + std::chrono::hours(1);
  });
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  EXPECT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  ASSERT_EQ(fake.Get(id).state, JobState::kSuspended);
  const auto of_engine = [&] { return fake.clock.asked()[engine]; };
  const auto of_others = [&] {
    int64_t asked = 0;
    for (const auto& [thread, times] : fake.clock.asked()) {
      const bool counts = thread != engine.load() && thread != std::this_thread::get_id();
      asked += counts ? times : 0;
    }
    return asked;
  };
  const auto look = [&](int64_t times) {
    for (const int64_t before = of_others(); of_others() < before + times;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  };
  look(6);  // by now it has come to rest
  const int64_t before = of_engine();
  look(30);
  EXPECT_LT(of_engine(), before + 5);
}

TEST(EngineSuspend, AWaitingJobNeverBeginsUntilItIsResumed) {
  FakeEngine fake;
  fake.model.steps.Close();
  const std::string first = fake.Submit("first");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const std::string second = fake.Submit("second", [](auto& r) { r.width = 128; });
  EXPECT_FALSE(fake.engine->Suspend(second));
  EXPECT_EQ(fake.Get(second).state, JobState::kSuspended);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.model.began(), ElementsAre("first"));
  fake.engine->Resume(second);
  EXPECT_EQ(fake.AwaitEnd(second).state, JobState::kSucceeded);
}

TEST(EngineSuspend, WhatIsPutAsideHoldsNoPlaceInTheQueueAndHasALimitOfItsOwn) {
  EngineOptions options;
  options.max_queued_jobs = 2;
  FakeEngine fake(options);
  fake.model.steps.Close();
  const std::string running = fake.Submit("running");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  std::vector<std::string> ids;
  for (int i = 0; i < 2; ++i) ids.push_back(fake.Submit("aside"));
  for (const std::string& id : ids) EXPECT_FALSE(fake.engine->Suspend(id));
  for (int i = 0; i < 2; ++i) ids.push_back(fake.Submit("waiting"));
  EXPECT_EQ(std::get<Error>(fake.engine->Submit(SmallRequest("more"))).reason(), "QUEUE_FULL");
  for (const std::string& id : {ids[2], running}) {
    const auto refusal = fake.engine->Suspend(id);
    ASSERT_TRUE(refusal);
    EXPECT_EQ(refusal->code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(refusal->reason(), "TOO_MANY_SUSPENDED");
  }
  EXPECT_FALSE(fake.engine->Suspend(ids[0])) << "it is so already";
  EXPECT_FALSE(fake.engine->Resume(ids[0])) << "what was accepted always may go on";
  EXPECT_EQ(fake.engine->queue_depth(), 3);
  EXPECT_EQ(std::get<Error>(fake.engine->Submit(SmallRequest("more"))).reason(), "QUEUE_FULL");
  EXPECT_FALSE(fake.engine->Suspend(running));
  EXPECT_EQ(fake.engine->Suspend(ids[2])->reason(), "TOO_MANY_SUSPENDED") << "it will be aside";
  fake.model.steps.Open();
  for (const std::string& id : {ids[0], ids[2], ids[3]}) {
    EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
  }
  EXPECT_EQ(fake.Get(running).state, JobState::kSuspended);
}

TEST(EngineSuspend, ASuspendedJobCanBeCancelledAndAnEndedOneNotSuspended) {
  FakeEngine fake;
  fake.model.steps.Close();
  const std::string id = fake.Submit("aside");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.engine->Suspend(id);
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.engine->Cancel(id), Engine::CancelResult::kCancelling);
  EXPECT_EQ(fake.Get(id).state, JobState::kCancelled);
  EXPECT_EQ(fake.engine->Suspend(id)->reason(), "JOB_FINISHED");
  EXPECT_EQ(fake.engine->Resume(id)->reason(), "JOB_FINISHED");
  EXPECT_EQ(fake.engine->Suspend("nobody")->code(), StatusCode::kNotFound);
}

TEST_F(EngineKeeping, AJobGoesOnAtTheNextStartWithoutRunningAStepTwice) {
  std::string running, waiting;
  int64_t ran = 0;
  {
    FakeEngine fake(Options());
    fake.model.steps.Close();
    running = fake.Submit("running", [](auto& r) { Steps(r, 6); });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    waiting = fake.Submit("waiting", [](auto& r) { r.width = 128; });
    fake.model.steps.Allow(2);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(3));
    fake.engine->Stop();
    fake.model.steps.Open();
    fake.engine->Shutdown();
    ran = fake.model.steps_run;
    EXPECT_EQ(fake.Get(running).state, JobState::kQueued);
    EXPECT_EQ(fake.Get(waiting).state, JobState::kQueued);
  }
  FakeEngine next(Options());
  const JobSnapshot job = next.AwaitEnd(running);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(job.attempt, 2);
  EXPECT_EQ(next.AwaitEnd(waiting).state, JobState::kSucceeded);
  EXPECT_EQ(ran + next.model.steps_run, 6 + 3);
  ExpectStepsCovered(job, 6);
}

TEST_F(EngineKeeping, ASuspendedJobStaysSuspendedOverARestart) {
  std::string id;
  {
    FakeEngine fake(Options());
    fake.model.steps.Close();
    id = fake.Submit("aside", [](auto& r) { Steps(r, 5); });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    fake.engine->Suspend(id);
    fake.model.steps.Open();
    ASSERT_TRUE(fake.WaitIdle());
  }
  FakeEngine next(Options());
  ASSERT_TRUE(next.WaitIdle());
  EXPECT_EQ(next.Get(id).state, JobState::kSuspended);
  next.engine->Resume(id);
  EXPECT_EQ(next.AwaitEnd(id).state, JobState::kSucceeded);
  EXPECT_EQ(next.model.steps_run, 4);
}

// What the disk holds in the middle of a step is what a crash there would leave.
TEST_F(EngineKeeping, AWishThatWasAcceptedOutlivesACrash) {
  const TemporaryFolder crashed;
  std::string cancelled, aside, resumed;
  {
    FakeEngine fake(Options());
    fake.model.steps.Close();
    cancelled = fake.Submit("cancelled", [](auto& r) { Steps(r, 40); });
    aside = fake.Submit("aside", [](auto& r) { Steps(r, 40); });
    resumed = fake.Submit("resumed", [](auto& r) { Steps(r, 40); });
    for (int64_t all = 0, forward = 1; all < 3; ++forward) {
      ASSERT_TRUE(fake.model.steps.AwaitArrival(forward));
      all = std::ssize(fake.model.forwards().back());
      if (all < 3) fake.model.steps.Allow(1);
    }
    EXPECT_EQ(fake.engine->Cancel(cancelled), Engine::CancelResult::kCancelling);
    EXPECT_FALSE(fake.engine->Suspend(aside));
    EXPECT_FALSE(fake.engine->Suspend(resumed));
    EXPECT_FALSE(fake.engine->Resume(resumed));
    for (const std::string& id : {cancelled, aside, resumed}) {
      ASSERT_EQ(fake.Get(id).state, JobState::kRunning);
    }
    CopyLive(folder_.path(), crashed.path());
  }
  EngineOptions options = Options();
  options.state_dir = crashed.path();
  FakeEngine next(options);
  EXPECT_EQ(next.Get(cancelled).state, JobState::kCancelled);
  EXPECT_EQ(next.Get(cancelled).error->reason, "CANCELLED");
  EXPECT_EQ(next.Get(aside).state, JobState::kSuspended);
  EXPECT_EQ(next.AwaitEnd(resumed).state, JobState::kSucceeded);
  ASSERT_TRUE(next.WaitIdle());
  EXPECT_THAT(next.model.began(), ElementsAre("resumed"));
  EXPECT_FALSE(next.engine->Resume(aside));
  EXPECT_EQ(next.AwaitEnd(aside).state, JobState::kSucceeded);
}

// Holds the commit of a submit until it is let go.
class HeldCommit : public StoreHooks {
 public:
  void At(std::string_view edge) override {
    if (edge == "accept.before_commit") before.Pass();
    if (edge == "accept.after_commit") answered_by_commit = answered_by_commit || answered;
  }
  Gate before{false};
  std::atomic<bool> answered{false}, answered_by_commit{false};
};

TEST_F(EngineKeeping, ASubmitIsAnsweredOnceItIsCommittedAndSeenByNobodyBefore) {
  HeldCommit held;
  FakeEngine fake(Options(), true, 2, [&](FakeModel* model) { model->store_hooks = &held; });
  std::string id;
  std::thread client([&] {
    id = fake.Submit("a client");
    held.answered = true;
  });
  ASSERT_TRUE(held.before.AwaitArrival(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // an answer would have come
  EXPECT_FALSE(held.answered);
  EXPECT_TRUE(fake.engine->jobs().List(std::nullopt, 10, "").jobs.empty());
  EXPECT_TRUE(fake.model.began().empty());
  held.before.Open();
  client.join();
  EXPECT_FALSE(held.answered_by_commit);
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
}

// The folder as a kill would leave it, once it has this file: the engine that writes there lives.
void CopyOnceItHas(const char* name, const std::filesystem::path& from,
                   const std::filesystem::path& to) {
  ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(from / name); })) << name;
  CopyLive(from, to);
}

TEST_F(EngineKeeping, AServerThatWasKilledLeavesWhatItLearntForDeadlines) {
  const TemporaryFolder killed;
  const auto hopeless = [](const FakeEngine& fake) {
    GenerationRequest request = SmallRequest("too long");
    request.num_inference_steps = 1000;
    request.deadline = fake.clock.now() + std::chrono::seconds(1);
    return request;
  };
  {
    FakeEngine fake(Options());
    fake.model.on_unit = [](const Unit&, int64_t) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    };
    fake.AwaitEnd(fake.Submit("teaches how long a step takes"));
    CopyOnceItHas("unit_times.json", folder_.path(), killed.path());
  }
  EngineOptions options = Options();
  options.state_dir = killed.path();
  FakeEngine next(options);
  const auto refused = next.engine->Submit(hopeless(next));
  ASSERT_TRUE(std::holds_alternative<Error>(refused));
  EXPECT_EQ(std::get<Error>(refused).reason(), "DEADLINE_UNREACHABLE");
}

TEST_F(EngineKeeping, AnotherBackendBeginsTheJobAnewAndItsReceiptSaysSo) {
  std::string id;
  {
    FakeEngine fake(Options());
    fake.model.steps.Close();
    id = fake.Submit("moved", [](auto& r) { Steps(r, 4); });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    fake.engine->Stop();
    fake.model.steps.Open();
    fake.engine->Shutdown();
  }
  EngineOptions options = Options();
  options.environment_backend = AttnBackend::kReference;
  FakeEngine next(options);
  const JobSnapshot job = next.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(next.model.steps_run, 4);
  std::string notes;
  for (const std::string& note : job.receipt.notes) notes += note + "\n";
  EXPECT_THAT(notes, HasSubstr("begun again from step 0"));
  EXPECT_THAT(notes, HasSubstr("REFERENCE"));
}

// Which backends ran in self-attention, in order, with the leases that chose them.
std::vector<std::string> SelfAttention(const JobSnapshot& job) {
  std::vector<std::string> rows;
  for (const ReceiptEntry& row : job.receipt.entries) {
    if (row.role != AttentionRole::kSelf) continue;
    rows.push_back(std::string(AttnBackendName(row.ran)) + " " + row.selection.granted.lease_id);
  }
  return rows;
}

TEST_F(EngineKeeping, LeasesOfTheLastServerDecideFromTheFirstStepOn) {
  std::string lease, id;
  uint64_t generation = 0;
  {
    FakeEngine fake(Options());
    fake.engine->policy().Release(AddForce(fake.engine->policy(), AttnBackend::kTorchSdpa).id);
    lease = AddForce(fake.engine->policy(), AttnBackend::kReference).id;
    generation = fake.engine->policy().generation();
    fake.model.steps.Close();
    id = fake.Submit("goes on", [](auto& r) { Steps(r, 4); });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    fake.engine->Stop();
    fake.model.steps.Open();
    fake.engine->Shutdown();
  }
  FakeEngine next(Options());
  EXPECT_EQ(next.engine->policy().generation(), generation);
  ASSERT_TRUE(next.engine->policy().Find(lease));
  const JobSnapshot job = next.AwaitEnd(id);
  EXPECT_THAT(SelfAttention(job), ElementsAre("REFERENCE " + lease));
  const auto entries = next.engine->audit().ReadAfter(0, 100);
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[2].subject, lease);
}

TEST_F(EngineKeeping, APinnedJobKeepsTheLeasesOfItsBeginningOverARestart) {
  std::string lease, pinned, free;
  {
    FakeEngine fake(Options());
    lease = AddForce(fake.engine->policy(), AttnBackend::kReference).id;
    fake.model.steps.Close();
    pinned = fake.Submit("pinned", [](auto& r) {
      Steps(r, 6);
      r.pin_backends = true;
    });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    fake.model.steps.Allow(1);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(2));
    fake.engine->policy().Release(lease);
    fake.model.steps.Allow(1);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(3));
    fake.engine->Stop();
    fake.model.steps.Open();
    fake.engine->Shutdown();
  }
  FakeEngine next(Options());
  EXPECT_FALSE(next.engine->policy().Find(lease)) << "it is nobody else's";
  const JobSnapshot job = next.AwaitEnd(pinned);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_LT(next.model.steps_run, 6) << "it goes on, and does not begin again";
  EXPECT_THAT(SelfAttention(job), ElementsAre("REFERENCE " + lease));
  ExpectStepsCovered(job, 6);
}

TEST(CheckpointPinned, LeasesAreReadBackInTheirOrder) {
  Checkpoint checkpoint;
  checkpoint.run = "bytes";
  EXPECT_EQ(Checkpoint::Parse(checkpoint.Serialise()).pinned, nullptr);
  Lease narrow, wide;
  narrow.id = "force-1";
  narrow.scope.where.layers = Interval{0, 3};
  wide.id = "force-2";
  wide.backend = AttnBackend::kSlaAttn;
  checkpoint.pinned = std::make_shared<LeaseList>(LeaseList{narrow, wide});
  const auto pinned = Checkpoint::Parse(checkpoint.Serialise()).pinned;
  ASSERT_EQ(pinned->size(), 2u);
  EXPECT_EQ(pinned->at(0).id, "force-1");
  EXPECT_EQ(pinned->at(0).scope, narrow.scope);
  EXPECT_EQ(pinned->at(1).backend, AttnBackend::kSlaAttn);
  checkpoint.pinned = std::make_shared<LeaseList>();
  EXPECT_NE(Checkpoint::Parse(checkpoint.Serialise()).pinned, nullptr)
      << "pinned to no lease is not the same as not pinned";
}

TEST_F(EngineKeeping, OneKeyIsOneJob) {
  FakeEngine fake(Options());
  const auto keyed = [](GenerationRequest& r) { r.idempotency_key = "k"; };
  const std::string one = fake.Submit("once", keyed), two = fake.Submit("once", keyed);
  EXPECT_EQ(one, two);
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.model.began(), ElementsAre("once"));
  GenerationRequest other = SmallRequest("another");
  other.idempotency_key = "k";
  EXPECT_EQ(std::get<Error>(fake.engine->Submit(other)).reason(), "IDEMPOTENCY_KEY");
}

TEST_F(EngineKeeping, AfterBeginNoMoreWhatWaitsStaysForTheNextStart) {
  std::string waiting;
  {
    FakeEngine fake(Options());
    fake.model.steps.Close();
    const std::string running = fake.Submit("running");
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    waiting = fake.Submit("waiting", [](auto& r) { r.width = 128; });
    fake.engine->BeginNoMore();
    EXPECT_TRUE(fake.engine->leaves_waiting());
    fake.model.steps.Open();
    ASSERT_TRUE(fake.WaitIdle());
    EXPECT_EQ(fake.Get(running).state, JobState::kSucceeded);
    EXPECT_EQ(fake.Get(waiting).state, JobState::kQueued);
  }
  FakeEngine next(Options());
  EXPECT_EQ(next.AwaitEnd(waiting).state, JobState::kSucceeded);
}

// Jobs that wait while the engine drains, and jobs that it has parked at its end.
TEST_F(EngineKeeping, WhatIsAskedWhileTheEngineEndsIsKeptOrRefused) {
  for (const bool parked : {false, true}) {
    SCOPED_TRACE(parked ? "parked" : "waiting");
    std::string cancelled, aside, resumed, left;
    {
      FakeEngine fake(Options(), /*steps_open=*/false);
      if (!parked) {  // another one has the device, in steps that they cannot share
        fake.Submit("runs", [](auto& r) { r.width = 128; });
        ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
      }
      if (parked) SharingPays(&fake.model);
      for (std::string* id : {&cancelled, &aside, &resumed, &left}) {
        *id = fake.Submit("job", [](auto& r) { Steps(r, 40); });
      }
      if (parked) {  // all four run
        for (int64_t forward = 1, all = 0; all < 4; ++forward) {
          ASSERT_TRUE(fake.model.steps.AwaitArrival(forward));
          all = std::ssize(fake.model.forwards().back());
          if (all < 4) fake.model.steps.Allow(1);
        }
        fake.engine->Stop();
        fake.model.steps.Open();
        ASSERT_TRUE(fake.WaitIdle());
      } else {
        fake.engine->BeginNoMore();
      }
      EXPECT_EQ(fake.engine->Cancel(cancelled), Engine::CancelResult::kCancelling);
      EXPECT_EQ(fake.Get(cancelled).state, JobState::kCancelled);
      EXPECT_FALSE(fake.engine->Suspend(aside));
      EXPECT_FALSE(fake.engine->Suspend(aside)) << "it is so";
      EXPECT_EQ(fake.Get(aside).state, JobState::kSuspended);
      EXPECT_FALSE(fake.engine->Suspend(resumed));
      EXPECT_EQ(fake.engine->Resume(resumed)->reason(), "DRAINING");
      EXPECT_EQ(fake.engine->Delete(left)->reason(), "JOB_NOT_FINISHED");
      EXPECT_FALSE(fake.engine->Delete(cancelled));
    }
    FakeEngine next(Options());
    EXPECT_FALSE(next.engine->jobs().Get(cancelled));
    EXPECT_EQ(next.Get(aside).state, JobState::kSuspended);
    EXPECT_EQ(next.Get(resumed).state, JobState::kSuspended);
    EXPECT_EQ(next.AwaitEnd(left).state, JobState::kSucceeded);
    for (const std::string& id : {aside, resumed}) {
      EXPECT_FALSE(next.engine->Resume(id));
      EXPECT_EQ(next.AwaitEnd(id).state, JobState::kSucceeded);
    }
  }
}

TEST(Checkpoints, AreReadBackOrRefusedAndNeverHalfRead) {
  Checkpoint checkpoint{
      7, "kernels=a\nbackend of self=FLASH_ATTN{}\n", {}, {"a note"}, "run\0bytes"};
  checkpoint.entries.resize(2);
  checkpoint.entries[1].last_step = 6;
  const std::string bytes = checkpoint.Serialise();
  const Checkpoint read = Checkpoint::Parse(bytes);
  EXPECT_EQ(read.step, 7);
  EXPECT_EQ(read.identity, checkpoint.identity);
  EXPECT_EQ(read.notes, checkpoint.notes);
  EXPECT_EQ(read.run, checkpoint.run);
  ASSERT_EQ(read.entries.size(), 2u);
  EXPECT_EQ(read.entries[1].last_step, 6);
  EXPECT_TRUE(Checkpoint::Parse("").run.empty());
  for (size_t length = 1; length < bytes.size(); ++length) {
    EXPECT_THROW(Checkpoint::Parse(bytes.substr(0, length)), Error) << length;
  }
  // Lengths that only wrap around to the right ones, and a head without an end.
  for (const char* head : {"denoised checkpoint 1 40 18446744073709551596\n01234567890123456789",
                           "denoised checkpoint 1 2 0", "denoised checkpoint 1 0 0 {}"}) {
    EXPECT_THROW(Checkpoint::Parse(head), Error) << head;
  }
  EXPECT_EQ(WhatDiffers("a=1\nb=2\n", "a=1\nb=3\n"), "b was 2, is 3");
}

}  // namespace
}  // namespace denoised
