// Sessions: latents that stay in the engine, stepped, read, written and forked between the units of
// everything else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using std::chrono::seconds;
using testing::Contains;
using testing::HasSubstr;
using testing::SizeIs;

constexpr int64_t kMiB = int64_t{1} << 20;

HostTensor LatentsOf(float value) {
  HostTensor latents{DType::kFloat32, {1, 1, 1, 1, 1}, std::string(sizeof value, '\0')};
  std::memcpy(latents.data.data(), &value, sizeof value);
  return latents;
}

using Answer = std::shared_ptr<Promised<SessionReply>>;

SessionRequest Request(const std::string& prompt = "a session", int64_t steps = 12) {
  SessionRequest request;
  request.generation.prompt = prompt;
  request.generation.seed = 7;
  request.generation.num_inference_steps = steps;
  return request;
}

// A client with its sessions.
class Client {
 public:
  explicit Client(FakeEngine* fake) : fake_(fake) {
    owner->ended = [ended = ended](const Error& why) { ended->Set(why); };
  }
  ~Client() { fake_->engine->LeaveSessions(owner); }

  Answer Open(SessionRequest request = Request()) {
    auto answer = std::make_shared<Promised<SessionReply>>();
    fake_->engine->OpenSession(owner, std::move(request),
                               [answer](SessionReply reply) { answer->Set(std::move(reply)); });
    return answer;
  }
  // The id.
  std::string Opened(SessionRequest request = Request()) {
    return Done(Open(std::move(request))).state.id;
  }

  Answer Ask(const std::string& id, SessionVerb verb) {
    auto answer = std::make_shared<Promised<SessionReply>>();
    fake_->engine->AskSession(owner, id, std::move(verb),
                              [answer](SessionReply reply) { answer->Set(std::move(reply)); });
    return answer;
  }
  SessionReply Do(const std::string& id, SessionVerb verb) {
    return Done(Ask(id, std::move(verb)));
  }
  std::string Latents(const std::string& id) {
    const SessionReply reply = Do(id, SessionRead{});
    return reply.latents ? reply.latents->data : "none";
  }

  static SessionReply Done(const Answer& answer) {
    if (!answer->Await()) {
      ADD_FAILURE() << "no answer";
      return {};
    }
    EXPECT_EQ(answer->times(), 1u);
    if (answer->value().error) ADD_FAILURE() << answer->value().error->what();
    return answer->value();
  }
  static Error ErrorOf(const Answer& answer) {
    if (answer->Await() && answer->value().error) return *answer->value().error;
    ADD_FAILURE() << "was done";
    return Error(StatusCode::kOk, "");
  }

  const std::shared_ptr<SessionOwner> owner = std::make_shared<SessionOwner>();
  const std::shared_ptr<Promised<Error>> ended = std::make_shared<Promised<Error>>();

 private:
  FakeEngine* const fake_;
};

// The bytes that a job with the same request ends with.
std::string JobsLatents(FakeEngine& fake, int64_t steps = 12) {
  const std::string id = fake.Submit(
      "a job", [&](GenerationRequest& request) { request.num_inference_steps = steps; });
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
  const auto artifact = fake.engine->jobs().GetArtifact(id, ArtifactFormat::kSafetensors);
  std::string bytes(artifact->size(), '\0');
  artifact->ReadAt(0, bytes.data(), bytes.size());
  return bytes.substr(bytes.size() - sizeof(float));  // the only tensor's only number comes last
}

TEST(EngineSessions, SteppedToTheEndItHasTheLatentsOfTheJob) {
  FakeEngine fake;
  const std::string wanted = JobsLatents(fake);
  Client client(&fake);
  const SessionReply opened = Client::Done(client.Open());
  ASSERT_TRUE(opened.opened);
  EXPECT_EQ(opened.opened->parameters.seed, 7);
  EXPECT_EQ(opened.opened->latents_shape, (std::vector<int64_t>{1, 1, 1, 1, 1}));
  EXPECT_THAT(opened.opened->sigmas, SizeIs(13));
  EXPECT_EQ(opened.state.num_steps, 12);
  EXPECT_EQ(opened.state.sigma, 1);
  const std::string id = opened.state.id;
  SessionReply reply;
  for (int64_t count : {1, 1, 3, 7}) reply = client.Do(id, SessionStep{count});
  EXPECT_EQ(reply.state.step, 12);
  EXPECT_EQ(reply.state.sigma, 0);
  EXPECT_EQ(client.Latents(id), wanted);
  ASSERT_TRUE(reply.receipt);
  EXPECT_EQ(reply.receipt->entries[0].last_step, 11);
  EXPECT_EQ(fake.observer.steps, 24) << "the job's and the session's";
}

TEST(EngineSessions, OneThatWasOnlySteppedHasTheFingerprintOfItsJob) {
  FakeEngine fake;
  const std::string job = fake.Submit("a session");
  const std::string wanted = fake.AwaitEnd(job).receipt.fingerprint;
  Client client(&fake);
  const std::string id = client.Opened(Request("a session", 3));
  EXPECT_NE(client.Do(id, SessionStep{2}).receipt->fingerprint, wanted);
  EXPECT_EQ(client.Do(id, SessionStep{1}).receipt->fingerprint, wanted);
}

TEST(EngineSessions, EveryChangeIsInTheFingerprint) {
  FakeEngine fake;
  std::vector<std::string> seen;
  const auto end = [&](const std::function<void(Client&, const std::string&)>& change) {
    Client client(&fake);
    const std::string id = client.Opened(Request("a session", 3));
    client.Do(id, SessionStep{1});
    change(client, id);
    const std::string fingerprint = client.Do(id, SessionStep{2}).receipt->fingerprint;
    EXPECT_THAT(seen, testing::Not(Contains(fingerprint)));
    seen.push_back(fingerprint);
  };
  const auto write = [](float value, bool keep) {
    return [=](Client& client, const std::string& id) {
      client.Do(id, SessionWrite{LatentsOf(value), {}, keep});
    };
  };
  end([](Client&, const std::string&) {});
  end(write(1, false));
  end(write(1, true));
  end(write(2, false));
  end([](Client& client, const std::string& id) { client.Do(id, SessionSet{3.0, {}}); });
  end([](Client& client, const std::string& id) { client.Do(id, SessionSet{4.0, {}}); });
  end([](Client& client, const std::string& id) { client.Do(id, SessionWrite{{}, 1, false}); });
}

TEST(EngineSessions, AForkGoesOnAloneFromWhereItWasMade) {
  FakeEngine fake;
  const std::string wanted = JobsLatents(fake);
  Client client(&fake);
  const std::string id = client.Opened();
  client.Do(id, SessionStep{5});
  const std::string fork = client.Do(id, SessionFork{}).forked;
  EXPECT_EQ(client.Latents(fork), client.Latents(id));
  client.Do(id, SessionSet{1.5, {}});
  client.Do(id, SessionStep{7});
  EXPECT_NE(client.Latents(id), wanted);
  const SessionReply reply = client.Do(fork, SessionStep{7});
  EXPECT_EQ(client.Latents(fork), wanted) << "what became of the first is not its business";
  EXPECT_EQ(reply.receipt->entries[0].first_step, 0) << "its past is on its receipt";
  EXPECT_EQ(client.Do(id, SessionClose{}).state.step, 12);
  EXPECT_EQ(client.Latents(fork), wanted) << "and it stays when that is closed";
}

TEST(EngineSessions, WhatIsWrittenIsReadAndGoesOnFromThere) {
  FakeEngine fake;
  Client client(&fake);
  const std::string id = client.Opened(), other = client.Opened();
  client.Do(id, SessionStep{6});
  const SessionReply written = client.Do(id, SessionWrite{LatentsOf(3), 2, false});
  EXPECT_EQ(written.state.step, 2);
  EXPECT_EQ(client.Latents(id), LatentsOf(3).data);
  client.Do(other, SessionWrite{LatentsOf(3), 2, false});
  client.Do(id, SessionStep{4});
  client.Do(other, SessionStep{4});
  EXPECT_EQ(client.Latents(id), client.Latents(other)) << "nothing of before is remembered";
}

TEST(EngineSessions, TheSameLatentsWrittenWithHistoryChangeNothing) {
  FakeEngine fake;
  const std::string wanted = JobsLatents(fake);
  Client client(&fake);
  const std::string kept = client.Opened(), forgot = client.Opened();
  for (const auto& [id, keep] : {std::pair(kept, true), std::pair(forgot, false)}) {
    client.Do(id, SessionStep{6});
    HostTensor latents = *client.Do(id, SessionRead{}).latents;
    client.Do(id, SessionWrite{std::move(latents), {}, keep});
    client.Do(id, SessionStep{6});
  }
  EXPECT_EQ(client.Latents(kept), wanted);
  EXPECT_NE(client.Latents(forgot), wanted);
}

TEST(EngineSessions, GivenLatentsEmbeddingsAndNoiseLevelsNeedNoPrompt) {
  FakeEngine fake;
  Client client(&fake);
  SessionRequest request;
  request.generation.latents = LatentsOf(5);
  request.generation.height = request.generation.width = 64;
  request.given.encoder_hidden_states = HostTensor{DType::kUInt8, {1, 4, 1}, "abcd"};
  request.given.sigmas = {0.9, 0.5};
  const SessionReply opened = Client::Done(client.Open(request));
  EXPECT_EQ(opened.opened->parameters.num_inference_steps, 2);
  EXPECT_EQ(opened.opened->parameters.max_sequence_length, 4);
  EXPECT_EQ(opened.opened->parameters.guidance_scale, 1) << "nothing to steer away from";
  EXPECT_EQ(opened.state.sigma, 0.9);
  EXPECT_EQ(client.Latents(opened.state.id), LatentsOf(5).data);
  EXPECT_EQ(client.Do(opened.state.id, SessionStep{1}).state.sigma, 0.5);
  EXPECT_TRUE(fake.model.began().empty()) << "no prompt was encoded";
  EXPECT_EQ(Client::ErrorOf(client.Ask(opened.state.id, SessionSet{5.0, {}})).field(),
            "guidance_scale");
}

TEST(EngineSessions, WhatIsSaidTwiceOrCannotBeIsRefusedByName) {
  FakeEngine fake;
  Client client(&fake);
  const auto refused = [&](const std::function<void(SessionRequest&)>& edit) {
    SessionRequest request = Request();
    edit(request);
    return Client::ErrorOf(client.Open(request)).field();
  };
  const HostTensor text{DType::kUInt8, {1, 4, 1}, "abcd"};
  EXPECT_EQ(refused([&](auto& r) { r.given.encoder_hidden_states = text; }), "prompt");
  EXPECT_EQ(refused([&](auto& r) { r.given.negative_encoder_hidden_states = text; }),
            "negative_encoder_hidden_states");
  EXPECT_EQ(refused([&](auto& r) {
              r.generation.prompt.clear();
              r.generation.guidance_scale = 2;
              r.given.encoder_hidden_states = text;
            }),
            "negative_encoder_hidden_states");
  EXPECT_EQ(refused([&](auto& r) { r.given.sigmas = {0.5}; }), "num_inference_steps");
  EXPECT_EQ(refused([&](auto& r) {
              r.generation.num_inference_steps.reset();
              r.generation.flow_shift = 3;
              r.given.sigmas = {0.5};
            }),
            "flow_shift");
  EXPECT_EQ(refused([&](auto& r) { r.generation.seed = -1; }), "seed");
  EXPECT_EQ(refused([&](auto& r) { r.generation.model = "absent"; }), "model");
  EXPECT_EQ(fake.engine->open_sessions(), 0);
}

TEST(EngineSessions, AVerbThatIsRefusedLeavesTheSessionAsItWas) {
  FakeEngine fake;
  const std::string wanted = JobsLatents(fake);
  Client client(&fake);
  const std::string id = client.Opened();
  client.Do(id, SessionStep{3});
  const auto refused = [&](SessionVerb verb) {
    const Answer answer = client.Ask(id, std::move(verb));
    const Error error = Client::ErrorOf(answer);
    EXPECT_EQ(answer->value().state.step, 3) << error.what();
    return error;
  };
  EXPECT_EQ(refused(SessionStep{0}).field(), "count");
  EXPECT_EQ(refused(SessionStep{10}).reason(), "NO_STEPS_LEFT");
  EXPECT_EQ(refused(SessionWrite{}).field(), "write");
  EXPECT_EQ(refused(SessionWrite{LatentsOf(1), 13, false}).field(), "step");
  EXPECT_EQ(refused(SessionWrite{LatentsOf(1), 3, true}).field(), "keep_history");
  EXPECT_EQ(refused(SessionWrite{HostTensor{DType::kFloat32, {1}, "abcd"}, {}, false}).field(),
            "latents.shape");
  EXPECT_EQ(refused(SessionSet{}).field(), "set");
  EXPECT_EQ(refused(SessionSet{-1.0, {}}).field(), "guidance_scale");
  AttentionOptions strict{AttnBackend::kFlashAttn, SelectionMode::kStrict, "", {}};
  EXPECT_EQ(refused(SessionSet{2.0, strict}).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Client::ErrorOf(client.Ask("nobody", SessionRead{})).reason(), "SESSION_NOT_FOUND");
  client.Do(id, SessionStep{9});
  EXPECT_EQ(client.Latents(id), wanted);
}

TEST(EngineSessions, AStepThatFailsLeavesThoseBeforeItAndMayBeTriedAgain) {
  FakeEngine fake;
  const std::string wanted = JobsLatents(fake);
  std::atomic<bool> fails{true};
  fake.model.on_step = [&](const RunRequest&, int64_t step) {
    if (step == 2 && fails) throw Error(StatusCode::kInternal, "not finite", "", "NON_FINITE");
  };
  Client client(&fake);
  const std::string id = client.Opened();
  const Answer answer = client.Ask(id, SessionStep{5});
  EXPECT_EQ(Client::ErrorOf(answer).reason(), "NON_FINITE");
  EXPECT_EQ(answer->value().state.step, 2);
  fails = false;
  client.Do(id, SessionStep{10});
  EXPECT_EQ(client.Latents(id), wanted);
}

TEST(EngineSessions, StepsShareForwardsWithJobsAndOtherSessions) {
  FakeEngine fake;
  const std::string wanted = JobsLatents(fake);
  Client client(&fake);
  const std::string one = client.Opened(Request("one")), two = client.Opened(Request("two"));
  fake.model.steps.Close();
  const int64_t before = fake.model.steps.arrivals();
  const std::string job =
      fake.Submit("beside", [](GenerationRequest& request) { request.num_inference_steps = 12; });
  ASSERT_TRUE(fake.model.steps.AwaitArrival(before + 1));
  const Answer first = client.Ask(one, SessionStep{12}), second = client.Ask(two, SessionStep{12});
  fake.model.steps.Open();
  Client::Done(first);
  Client::Done(second);
  EXPECT_EQ(fake.AwaitEnd(job).state, JobState::kSucceeded);
  EXPECT_EQ(client.Latents(one), wanted);
  EXPECT_EQ(client.Latents(two), wanted);
  EXPECT_THAT(fake.model.forwards(), Contains(SizeIs(testing::Ge(2u))));
}

TEST(EngineSessions, VerbsOfASessionAreDoneInTheirOrder) {
  FakeEngine fake;
  Client client(&fake);
  const std::string id = client.Opened();
  std::vector<Answer> answers;
  for (int i = 0; i < 4; ++i) {
    answers.push_back(client.Ask(id, SessionStep{1}));
    answers.push_back(client.Ask(id, SessionStep{0}));  // refused, in its turn
    answers.push_back(client.Ask(id, SessionRead{}));
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSERT_TRUE(answers[i]->Await());
    EXPECT_EQ(answers[i]->value().state.step, static_cast<int64_t>(i / 3 + 1));
  }
}

TEST(EngineSessions, SessionsThatNobodyAsksEndTogether) {
  EngineOptions options;
  options.session_idle = seconds(10);
  FakeEngine fake(options);
  Client client(&fake), busy(&fake);
  const std::string id = client.Opened(), fork = client.Do(id, SessionFork{}).forked;
  const std::string other = busy.Opened();
  fake.clock.Advance(seconds(6));
  client.Do(fork, SessionRead{});  // keeps the first one too
  busy.Do(other, SessionRead{});
  fake.clock.Advance(seconds(6));
  busy.Do(other, SessionRead{});
  client.Do(id, SessionRead{});
  EXPECT_EQ(client.ended->times(), 0u);
  fake.clock.Advance(seconds(9));
  busy.Do(other, SessionRead{});
  fake.clock.Advance(seconds(1));
  ASSERT_TRUE(client.ended->Await());
  EXPECT_EQ(client.ended->value().reason(), "SESSION_IDLE");
  EXPECT_THAT(client.ended->value().what(), HasSubstr("--session_idle"));
  EXPECT_EQ(client.ended->times(), 1u);
  EXPECT_EQ(busy.ended->times(), 0u);
  EXPECT_EQ(Client::ErrorOf(client.Ask(id, SessionRead{})).reason(), "SESSION_NOT_FOUND");
  EXPECT_EQ(fake.engine->open_sessions(), 1);
}

TEST(EngineSessions, AStepIsNoIdleTimeAndZeroIsNever) {
  EngineOptions options;
  options.session_idle = seconds(10);
  FakeEngine fake(options);
  Client client(&fake);
  const std::string id = client.Opened();
  fake.model.steps.Close();
  const Answer answer = client.Ask(id, SessionStep{1});
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.clock.Advance(seconds(60));
  fake.model.steps.Open();
  EXPECT_EQ(Client::Done(answer).state.step, 1);
  EXPECT_EQ(client.Do(id, SessionRead{}).state.step, 1);
  options.session_idle = seconds(0);
  FakeEngine patient(options);
  Client waits(&patient);
  const std::string kept = waits.Opened();
  patient.clock.Advance(std::chrono::hours(10000));
  EXPECT_EQ(waits.Do(kept, SessionRead{}).state.step, 0);
}

TEST(EngineSessions, AClientThatLeavesFreesItsSessionsAtTheNextStopPoint) {
  FakeEngine fake;
  std::atomic<int64_t> steps{0};
  auto client = std::make_unique<Client>(&fake);
  const std::string id = client->Opened(Request("left", 1000));
  client->Do(id, SessionFork{});
  fake.model.on_step = [&](const RunRequest&, int64_t) { ++steps; };
  fake.model.steps.Close();
  const Answer answer = client->Ask(id, SessionStep{1000}), behind = client->Ask(id, SessionRead{});
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const auto ended = client->ended;
  client.reset();
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.engine->open_sessions(), 0);
  EXPECT_EQ(fake.model.live_runs, 0);
  EXPECT_LE(steps, 2);
  EXPECT_EQ(Client::ErrorOf(answer).code(), StatusCode::kCancelled);
  EXPECT_EQ(Client::ErrorOf(behind).code(), StatusCode::kCancelled);
  EXPECT_EQ(ended->times(), 0u) << "who left need not be told";
}

TEST(EngineSessions, SoManyAndNoMore) {
  EngineOptions options;
  options.max_sessions = 2;
  FakeEngine fake(options);
  Client client(&fake);
  const std::string id = client.Opened();
  const std::string fork = client.Do(id, SessionFork{}).forked;
  const Error opened = Client::ErrorOf(client.Open());
  EXPECT_EQ(opened.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(opened.reason(), "TOO_MANY_SESSIONS");
  EXPECT_EQ(Client::ErrorOf(client.Ask(id, SessionFork{})).reason(), "TOO_MANY_SESSIONS");
  client.Do(fork, SessionClose{});
  EXPECT_NE(client.Do(id, SessionFork{}).forked, "");
}

TEST(EngineSessions, DrainingEndsThemWhenTheirRequestsAreAnswered) {
  FakeEngine fake;
  Client client(&fake), idle(&fake);
  const std::string id = client.Opened();
  idle.Opened();
  fake.model.steps.Close();
  const Answer step = client.Ask(id, SessionStep{2}), read = client.Ask(id, SessionRead{});
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.engine->Drain();
  EXPECT_EQ(Client::ErrorOf(client.Ask(id, SessionRead{})).reason(), "DRAINING");
  EXPECT_EQ(Client::ErrorOf(client.Open()).reason(), "DRAINING");
  fake.model.steps.Open();
  EXPECT_EQ(Client::Done(step).state.step, 2);
  EXPECT_TRUE(Client::Done(read).latents);
  for (const Client* one : {&client, &idle}) {
    ASSERT_TRUE(one->ended->Await());
    EXPECT_EQ(one->ended->value().reason(), "DRAINING");
    EXPECT_EQ(one->ended->value().code(), StatusCode::kUnavailable);
  }
  EXPECT_EQ(Client::ErrorOf(client.Ask(id, SessionRead{})).reason(), "DRAINING")
      << "why it is gone";
  EXPECT_TRUE(fake.WaitIdle());
}

TEST(EngineSessions, AStopEndsThemInTheMiddleOfAStep) {
  FakeEngine fake;
  Client client(&fake);
  const std::string id = client.Opened();
  fake.model.steps.Close();
  const Answer step = client.Ask(id, SessionStep{2}), read = client.Ask(id, SessionRead{});
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.engine->Stop();
  fake.model.steps.Open();
  EXPECT_EQ(Client::ErrorOf(step).reason(), "DRAINING");
  EXPECT_EQ(Client::ErrorOf(read).reason(), "DRAINING");
  ASSERT_TRUE(client.ended->Await());
  EXPECT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.model.live_runs, 0);
}

// ---- memory ------------------------------------------------------------------------------------

EngineOptions WithRoom(int64_t room) {
  EngineOptions options;
  options.max_memory = std::to_string(ResidentBytes() + room) + "B";
  return options;
}

TEST(EngineSessions, ASessionHoldsItsMemoryUntilItIsClosed) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  fake.model.estimate.peak_bytes = 500 * kMiB;
  fake.model.estimate.held_bytes = 300 * kMiB;
  Client client(&fake);
  const std::string id = client.Opened();
  const std::string fork = client.Do(id, SessionFork{}).forked;
  EXPECT_EQ(Client::ErrorOf(client.Ask(id, SessionFork{})).reason(), "MEMORY");
  const Error refused = Client::ErrorOf(client.Open());
  EXPECT_EQ(refused.reason(), "MEMORY");
  EXPECT_THAT(refused.what(), HasSubstr("a session of 64x64 pixels and 5 frames"));
  EXPECT_EQ(fake.engine->open_sessions(), 2) << "what is refused holds nothing";
  client.Do(fork, SessionClose{});
  EXPECT_NE(client.Opened(), "");
}

TEST(EngineSessions, AJobThatFitsOnlyWithoutSessionsWaitsForThem) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  fake.model.estimate.peak_bytes = 500 * kMiB;
  fake.model.estimate.held_bytes = 400 * kMiB;
  Client client(&fake);
  const std::string id = client.Opened();
  fake.model.estimate.peak_bytes = 900 * kMiB;
  fake.model.estimate.held_bytes = 0;
  const std::string job = fake.Submit("waits");
  client.Do(id, SessionStep{1});
  EXPECT_EQ(fake.Get(job).state, JobState::kQueued);
  client.Do(id, SessionClose{});
  EXPECT_EQ(fake.AwaitEnd(job).state, JobState::kSucceeded);
}

TEST(EngineSessions, ASetThatDoesNotFitChangesNothing) {
  FakeEngine fake(WithRoom(1024 * kMiB));
  const std::string wanted = JobsLatents(fake);
  Client client(&fake);
  const std::string id = client.Opened();
  fake.model.estimate.peak_bytes = 2048 * kMiB;
  EXPECT_EQ(Client::ErrorOf(client.Ask(id, SessionSet{9.0, {}})).reason(), "MEMORY");
  client.Do(id, SessionStep{12});
  EXPECT_EQ(client.Latents(id), wanted);
}

TEST(EngineSessions, AnotherBackendServesFromTheNextStepOn) {
  FakeEngine fake;
  Client client(&fake);
  const std::string id = client.Opened();
  client.Do(id, SessionStep{2});
  client.Do(id, SessionSet{{}, AttentionOptions{AttnBackend::kReference, {}, "", {}}});
  const SessionReply reply = client.Do(id, SessionStep{2});
  std::vector<std::pair<AttnBackend, int64_t>> self;
  for (const ReceiptEntry& entry : reply.receipt->entries) {
    if (entry.role == AttentionRole::kSelf) self.emplace_back(entry.ran, entry.first_step);
  }
  EXPECT_THAT(self, testing::ElementsAre(std::pair(AttnBackend::kTorchSdpa, int64_t{0}),
                                         std::pair(AttnBackend::kReference, int64_t{2})));
}

}  // namespace
}  // namespace denoised
