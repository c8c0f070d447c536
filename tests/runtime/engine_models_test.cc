// Models that are loaded again, and taken away, while the engine works.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/runtime/fake_engine.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr char kOld[] = "model digest of fake", kNew[] = "model digest of fake, mended";

// The engine, and what its folder "fake" has become.
struct ChangedFolder {
  FakeModel mended;
};
struct SwappingEngine : ChangedFolder, FakeEngine {
  explicit SwappingEngine(const EngineOptions& options = {},
                          const std::function<void(FakeModel*)>& set_up = {})
      : FakeEngine(options, /*steps_open=*/true, 2, set_up) {
    mended.weights = ", mended";
    source->folders["fake"] = &mended;
  }
  ~SwappingEngine() { mended.steps.Open(); }

  std::vector<std::string> Failed() {
    std::vector<std::string> names;
    for (const FailedModel& failed : engine->ListFailedModels()) names.push_back(failed.name);
    return names;
  }

  std::string Running() { return StartBlocked("running"); }
  std::vector<std::string> Audited() {
    std::vector<std::string> rows;
    for (const AuditEntry& entry : engine->audit().ReadAfter(0, 100)) {
      rows.push_back(entry.what + " " + entry.subject + ": " + entry.old_value + " -> " +
                     entry.new_value);
    }
    return rows;
  }
  std::string Served() {
    std::string digests;
    for (const ModelInfo& info : engine->ListModels()) digests += info.model_digest;
    return digests;
  }
  // The last that had it may just let it go.
  bool Freed(const FakeModel& gone) {
    return Eventually([&] { return gone.live_pipelines == 0; });
  }
};

template <typename Outcome>
Outcome Done(const std::variant<Outcome, Error>& outcome) {
  if (const auto* error = std::get_if<Error>(&outcome)) ADD_FAILURE() << error->what();
  const auto* done = std::get_if<Outcome>(&outcome);
  return done == nullptr ? Outcome{} : *done;
}

TEST(EngineModels, ARunningJobEndsWithItsModelAndTheNextOneHasTheNew) {
  SwappingEngine fake;
  SharingPays(&fake.model);
  const std::string running = fake.Running(), waiting = fake.Submit("waiting");
  const ModelLoaded loaded = Done(fake.Load("fake"));
  EXPECT_EQ(loaded.previous_digest, kOld);
  EXPECT_EQ(loaded.model.model_digest, kNew);
  EXPECT_TRUE(loaded.model.is_default);
  EXPECT_FALSE(loaded.unchanged);
  EXPECT_EQ(loaded.on_previous, 1);
  EXPECT_EQ(fake.Served(), kNew);
  const std::string later = fake.Submit("later");
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.Get(running).receipt.model_digest, kOld);
  for (const std::string& id : {waiting, later}) {
    EXPECT_EQ(fake.Get(id).state, JobState::kSucceeded);
    EXPECT_EQ(fake.Get(id).receipt.model_digest, kNew);
  }
  EXPECT_THAT(fake.model.forwards(), Each(ElementsAre("running"))) << "two models shared a forward";
  EXPECT_THAT(fake.mended.began(), ElementsAre("waiting", "later"));
  EXPECT_TRUE(fake.Freed(fake.model)) << "nobody needs it";
  EXPECT_THAT(fake.Audited(), ElementsAre(std::string("load_model fake: ") + kOld + " -> " + kNew));
}

TEST(EngineModels, AFolderThatCannotBeLoadedChangesNothingAndIsNamed) {
  SwappingEngine fake;
  const std::string running = fake.Running();
  fake.source->on_load = [] {
    throw Error(StatusCode::kInvalidArgument, "fake/w.safetensors: header is cut", "w");
  };
  const Error error = ErrorOf(fake.Load("fake"));
  EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(error.reason(), "INVALID_MODEL");
  EXPECT_THAT(error.what(), HasSubstr("fake/w.safetensors: header is cut"));
  ASSERT_THAT(fake.engine->ListFailedModels(), SizeIs(1));
  EXPECT_EQ(fake.engine->ListFailedModels().front().name, "fake");
  EXPECT_EQ(fake.engine->ListFailedModels().front().message, error.what());
  EXPECT_EQ(fake.Served(), kOld);
  EXPECT_THAT(fake.Audited(), ElementsAre(AllOf(HasSubstr("load_model fake"), HasSubstr(kOld),
                                                HasSubstr("header is cut"))));
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(running).state, JobState::kSucceeded);
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("after")).receipt.model_digest, kOld);

  fake.source->on_load = {};
  Done(fake.Load("fake"));
  EXPECT_THAT(fake.engine->ListFailedModels(), IsEmpty());
  EXPECT_EQ(fake.Served(), kNew);
}

TEST(EngineModels, FilesThatAreTheSameAreNotSwappedIn) {
  SwappingEngine fake;
  fake.mended.weights.clear();
  const ModelLoaded loaded = Done(fake.Load("fake"));
  EXPECT_TRUE(loaded.unchanged);
  EXPECT_EQ(fake.mended.live_pipelines, 0);
  EXPECT_EQ(fake.model.live_pipelines, 1);
}

TEST(EngineModels, ASuspendedJobBeginsAgainWithTheNewModelAndItsReceiptSaysSo) {
  SwappingEngine fake;
  const std::string id = fake.Running();
  EXPECT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Open();
  fake.Await(id, [](const JobSnapshot& job) { return job.state == JobState::kSuspended; });
  Done(fake.Load("fake"));
  EXPECT_TRUE(fake.Freed(fake.model)) << "a job that may stay aside for days has it";
  EXPECT_FALSE(fake.engine->Resume(id));
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(job.receipt.model_digest, kNew);
  EXPECT_THAT(job.receipt.notes,
              Contains(AllOf(HasSubstr("begun again from step 0, not from step 1"),
                             HasSubstr(std::string("model was ") + kOld + ", is " + kNew))));
  EXPECT_EQ(fake.mended.steps_run, 3);
}

TEST(EngineModels, AJobThatIsSuspendedAfterTheSwapGoesOverToo) {
  SwappingEngine fake;
  const std::string id = fake.Running();
  Done(fake.Load("fake"));
  EXPECT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Open();
  fake.Await(id, [](const JobSnapshot& job) { return job.state == JobState::kSuspended; });
  EXPECT_TRUE(fake.Freed(fake.model));
  EXPECT_FALSE(fake.engine->Resume(id));
  EXPECT_EQ(fake.AwaitEnd(id).receipt.model_digest, kNew);
}

TEST(EngineModels, OneChangeAtATimeAndNoneWhileTheServerDrains) {
  SwappingEngine fake;
  fake.source->loads.Close();
  Promised<std::variant<ModelLoaded, Error>> first;
  fake.engine->LoadModel({"fake", false, "", ""},
                         [&](auto outcome) { first.Set(std::move(outcome)); });
  ASSERT_TRUE(fake.source->loads.AwaitArrival(1));
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("meanwhile")).receipt.model_digest, kOld);
  EXPECT_EQ(ErrorOf(fake.Load("fake")).code(), StatusCode::kAborted);
  EXPECT_EQ(ErrorOf(fake.Unload("fake")).reason(), "MODEL_CHANGING");
  fake.engine->Drain();
  fake.source->loads.Open();
  ASSERT_TRUE(first.Await());
  EXPECT_EQ(ErrorOf(first.value()).reason(), "DRAINING");
  EXPECT_EQ(ErrorOf(fake.Load("fake")).reason(), "DRAINING");
  EXPECT_EQ(ErrorOf(fake.Unload("fake")).reason(), "DRAINING");
  EXPECT_EQ(fake.Served(), kOld);
  EXPECT_THAT(fake.engine->ListFailedModels(), IsEmpty()) << "the folder is well";
  EXPECT_THAT(fake.Audited(), IsEmpty());
}

TEST(EngineModels, AnEngineThatEndsAnswersTheLoadThatIsUnderWay) {
  Promised<std::variant<ModelLoaded, Error>> load;
  {
    SwappingEngine fake;
    fake.source->loads.Close();
    fake.engine->LoadModel({"fake", false, "", ""},
                           [&](auto outcome) { load.Set(std::move(outcome)); });
    ASSERT_TRUE(fake.source->loads.AwaitArrival(1));
    fake.engine->Stop();
    fake.source->loads.Open();
  }
  ASSERT_EQ(load.times(), 1u);
  EXPECT_EQ(ErrorOf(load.value()).reason(), "DRAINING");
}

TEST(EngineModels, BothMustFit) {
  EngineOptions options;
  options.max_memory = "64GiB";
  SwappingEngine fake(options);
  fake.mended.weight_bytes = int64_t{1} << 50;
  const Error error = ErrorOf(fake.Load("fake"));
  EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(error.reason(), "MEMORY");
  EXPECT_THAT(error.what(), AllOf(HasSubstr("loading model fake needs"), HasSubstr("64.00 GiB"),
                                  HasSubstr("unload")));
  EXPECT_THAT(fake.engine->ListFailedModels(), IsEmpty());
  EXPECT_EQ(fake.Served(), kOld);

  // While the older one is used it counts too, and afterwards no longer.
  fake.mended.weight_bytes = int64_t{40} << 30;
  Done(fake.Load("fake"));
  EXPECT_TRUE(fake.Freed(fake.model));
  FakeModel third;
  third.weights = ", once more";
  third.weight_bytes = int64_t{40} << 30;
  fake.source->folders["fake"] = &third;
  EXPECT_EQ(ErrorOf(fake.Load("fake")).reason(), "MEMORY");
  Done(fake.Unload("fake"));
  Done(fake.Load("fake"));
  fake.engine->Shutdown();
  fake.engine.reset();
}

TEST(EngineModels, AJobThatFitsBesideOneModelWaitsUntilTheOtherIsGone) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  EngineOptions options;
  options.max_memory = "64GiB";
  // The thread that writes a job's files still has its model when the job has ended.
  Gate counted(false);
  std::atomic<std::thread::id> writer;
  std::atomic<bool> ended = false;
  SwappingEngine fake(options, [&](FakeModel* model) {
    model->weight_bytes = 40 * kGiB;
    model->on_kept_bytes = [&] {
      if (ended && writer.load() == std::this_thread::get_id()) counted.Pass();
    };
  });
  fake.mended.weight_bytes = 40 * kGiB;
  fake.mended.estimate.peak_bytes = 30 * kGiB;
  fake.store->on_artifact = [&](const ArtifactInfo&) { writer = std::this_thread::get_id(); };
  fake.store->on_change = [&](const JobSnapshot& job) { ended = ended || IsTerminal(job.state); };
  const std::string older = fake.Running();
  Done(fake.Load("fake"));
  const std::string large = fake.Submit("large");
  fake.model.steps.Open();
  ASSERT_TRUE(counted.AwaitArrival(1));
  EXPECT_EQ(fake.Get(older).state, JobState::kSucceeded);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // it is tried in this time
  EXPECT_EQ(fake.Get(large).state, JobState::kQueued);
  counted.Open();
  EXPECT_EQ(fake.AwaitEnd(large).state, JobState::kSucceeded);
  fake.engine->Shutdown();
}

TEST(EngineModels, ARunningJobIsExplainedAndForcedByItsOwnModel) {
  SwappingEngine fake;
  for (AttentionSpec& spec : fake.mended.specs) spec.supported = {AttnBackend::kReference};
  const std::string running = fake.Running();
  Done(fake.Load("fake"));
  LeaseRequest force{AttnBackend::kTorchSdpa};
  EXPECT_TRUE(fake.engine->CheckForce(force)) << "the new model does not list it";
  force.scope.job = running;
  EXPECT_FALSE(fake.engine->CheckForce(force));
  ExplainQuery query;
  query.job_id = running;
  EXPECT_EQ(fake.engine->Explain(query).front().selection.granted.backend, AttnBackend::kTorchSdpa);
  fake.model.steps.Open();
}

TEST(EngineModels, WhatADefaultWasFollowsTheNewModelAlsoAtTheNextStart) {
  const TemporaryFolder folder;
  std::string id;
  const auto shift = [](FakeModel* model) {
    model->weights = ", mended";
    model->flow_shift = 9;
  };
  {
    SwappingEngine fake(KeepingIn(folder.path()));
    fake.mended.flow_shift = 5;
    id = fake.Running();
    EXPECT_FALSE(fake.engine->Suspend(id));
    fake.model.steps.Open();
    fake.Await(id, [](const JobSnapshot& job) { return job.state == JobState::kSuspended; });
    Done(fake.Load("fake"));
    EXPECT_TRUE(fake.Freed(fake.model));
    EXPECT_EQ(fake.Get(id).parameters.flow_shift, 5);
  }
  SwappingEngine fake(KeepingIn(folder.path()), shift);
  EXPECT_EQ(fake.Get(id).parameters.flow_shift, 9);
  EXPECT_FALSE(fake.engine->Resume(id));
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(job.receipt.model_digest, kNew);
}

TEST(EngineModels, AFolderThatFailedAndIsGoneIsForgotten) {
  FakeModel other;
  other.name = "other";
  SwappingEngine fake;
  fake.source->folders["other"] = &other;
  fake.source->on_load = [] { throw Error(StatusCode::kInvalidArgument, "header is cut"); };
  ErrorOf(fake.Load("other"));
  EXPECT_THAT(fake.Failed(), ElementsAre("other"));
  fake.source->folders.erase("other");
  EXPECT_EQ(ErrorOf(fake.Load("other")).reason(), "MODEL_NOT_FOUND");
  EXPECT_THAT(fake.Failed(), IsEmpty());
  EXPECT_EQ(ErrorOf(fake.Load("anybody's")).reason(), "MODEL_NOT_FOUND");
  EXPECT_THAT(fake.Failed(), IsEmpty());
}

// ---- unload

TEST(EngineModels, AJobOnItsWayToTheDiskIsWork) {
  SwappingEngine fake;
  std::optional<Error> busy;
  fake.store->on_add = [&](const GenerationRequest&) { busy = ErrorOf(fake.Unload("fake")); };
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("coming")).state, JobState::kSucceeded);
  ASSERT_TRUE(busy);
  EXPECT_EQ(busy->reason(), "MODEL_BUSY");
  EXPECT_THAT(busy->what(), HasSubstr("1 job waits"));
}

TEST(EngineModels, AJobThatIsPutAwayWhileItsModelIsTakenEnds) {
  const TemporaryFolder folder;
  EngineOptions options = KeepingIn(folder.path());
  options.checkpoint_every = 0;
  options.max_resident_bytes = 90;
  SwappingEngine fake(options, [](FakeModel* model) {
    model->estimate.held_bytes = model->estimate.peak_bytes = 60;
  });
  const std::string slow = fake.Running();
  const std::string urgent = fake.Submit("urgent", [](GenerationRequest& request) {
    request.width = 128;
    request.priority = Priority::kUrgent;
  });
  const std::string aside = fake.Submit("aside");
  EXPECT_FALSE(fake.engine->Suspend(aside));
  Promised<std::variant<ModelUnloaded, Error>> forced;
  std::atomic<bool> once = false;
  fake.model.on_save = [&] {
    if (once.exchange(true)) return std::string();
    fake.engine->UnloadModel({"fake", true, "", ""},
                             [&](auto outcome) { forced.Set(std::move(outcome)); });
    fake.AwaitEnd(aside);
    return std::string();
  };
  fake.model.steps.Open();
  ASSERT_TRUE(forced.Await());
  EXPECT_TRUE(once);
  EXPECT_EQ(fake.AwaitEnd(slow).error->reason, "MODEL_UNLOADED");
  EXPECT_EQ(fake.AwaitEnd(urgent).error->reason, "MODEL_UNLOADED");
}

TEST(EngineModels, AModelWithWorkGoesOnlyByForceAndItsWorkEndsByName) {
  FakeModel other;
  other.name = "other";
  SwappingEngine fake;
  fake.source->folders["other"] = &other;
  EXPECT_EQ(ErrorOf(fake.Unload("other")).reason(), "MODEL_NOT_FOUND");
  Done(fake.Load("other"));
  EXPECT_EQ(ErrorOf(fake.Unload("fake")).reason(), "MODEL_IS_DEFAULT");
  const auto on_other = [](GenerationRequest& request) { request.model = "other"; };
  other.steps.Close();
  const std::string running = fake.Submit("running", on_other);
  ASSERT_TRUE(other.steps.AwaitArrival(1));
  const std::string waiting = fake.Submit("waiting", on_other), own = fake.Submit("own");
  const std::string aside = fake.Submit("aside", on_other);
  EXPECT_FALSE(fake.engine->Suspend(aside));
  const Error busy = ErrorOf(fake.Unload("other"));
  EXPECT_EQ(busy.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(busy.reason(), "MODEL_BUSY");
  EXPECT_THAT(busy.what(),
              AllOf(HasSubstr("1 job waits, 1 runs, 1 is suspended"), HasSubstr("0 sessions")));

  Promised<std::variant<ModelUnloaded, Error>> forced;
  fake.engine->UnloadModel({"other", true, "", ""},
                           [&](auto outcome) { forced.Set(std::move(outcome)); });
  EXPECT_EQ(fake.AwaitEnd(waiting).error->reason, "MODEL_UNLOADED");
  EXPECT_EQ(forced.times(), 0u) << "its memory is in use";
  Gate freeing(false);
  other.on_free = [&] { freeing.Pass(); };
  other.steps.Open();
  ASSERT_TRUE(freeing.AwaitArrival(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // an answer would have come
  EXPECT_EQ(forced.times(), 0u) << "nor is it free yet";
  freeing.Open();
  ASSERT_TRUE(forced.Await());
  EXPECT_EQ(Done(forced.value()).ended_jobs, 3);
  EXPECT_EQ(other.live_pipelines, 0);
  for (const std::string& id : {running, waiting, aside}) {
    const JobSnapshot job = fake.AwaitEnd(id);
    EXPECT_EQ(job.state, JobState::kFailed);
    EXPECT_EQ(job.error->reason, "MODEL_UNLOADED");
    EXPECT_THAT(job.error->message, HasSubstr("model other was unloaded"));
  }
  EXPECT_EQ(fake.AwaitEnd(own).state, JobState::kSucceeded);
  GenerationRequest request = SmallRequest("late");
  request.model = "other";
  EXPECT_EQ(std::get<Error>(fake.engine->Submit(request)).reason(), "MODEL_NOT_FOUND");
  EXPECT_THAT(fake.Audited(), Contains(HasSubstr("unload_model other")));
  fake.engine.reset();
}

TEST(EngineModels, TheOnlyOneCanGoAndComesBackAsTheDefault) {
  SwappingEngine fake;
  Done(fake.Unload("fake"));
  EXPECT_THAT(fake.engine->ListModels(), IsEmpty());
  const std::vector<BackendInfo> backends = fake.engine->ListBackends();
  ASSERT_FALSE(backends.empty());
  EXPECT_EQ(backends.front().why_not, "no model is loaded");
  EXPECT_EQ(std::get<Error>(fake.engine->Submit(SmallRequest("nobody's"))).reason(),
            "MODEL_NOT_FOUND");
  EXPECT_TRUE(Done(fake.Load("fake")).model.is_default);
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("back")).receipt.model_digest, kNew);
}

TEST(EngineModels, ASessionEndsWithItsModelAndAForcedUnloadEndsIt) {
  SwappingEngine fake;
  const auto owner = std::make_shared<SessionOwner>();
  const auto ask = [&](const std::string& id, SessionVerb verb) {
    Promised<SessionReply> answer;
    fake.engine->AskSession(owner, id, std::move(verb),
                            [&](SessionReply reply) { answer.Set(std::move(reply)); });
    EXPECT_TRUE(answer.Await());
    return answer.value();
  };
  SessionRequest request;
  request.generation.prompt = "a session";
  Promised<SessionReply> opened;
  fake.engine->OpenSession(owner, request, [&](SessionReply reply) { opened.Set(reply); });
  ASSERT_TRUE(opened.Await());
  const std::string id = opened.value().state.id;
  EXPECT_EQ(Done(fake.Load("fake")).on_previous, 1);
  EXPECT_EQ(ask(id, SessionStep{1}).receipt->model_digest, kOld);
  EXPECT_EQ(ErrorOf(fake.Unload("fake")).reason(), "MODEL_BUSY");
  Promised<Error> ended;
  owner->ended = [&](const Error& why) { ended.Set(why); };
  EXPECT_EQ(Done(fake.Unload("fake", /*force=*/true)).ended_sessions, 1);
  ASSERT_TRUE(ended.Await()) << "a client that asks for nothing hears nothing";
  EXPECT_EQ(ended.value().code(), StatusCode::kAborted);
  EXPECT_EQ(ended.value().reason(), "MODEL_UNLOADED");
  EXPECT_EQ(ask(id, SessionStep{1}).error->reason(), "SESSION_NOT_FOUND");
  EXPECT_TRUE(fake.Freed(fake.model));
}

}  // namespace
}  // namespace denoised
