// Units that hang, and devices that are lost: what the process that ends leaves to the next one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <map>
#include <stdexcept>

#include "tests/runtime/fake_engine.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::Pair;
using testing::UnorderedElementsAre;

void Steps(GenerationRequest& request, int64_t steps) { request.num_inference_steps = steps; }

void Illegal() {
  throw std::runtime_error("CUDA error: an illegal memory access was encountered\nmore of it");
}

// Three processes, one after the other: the end of one copies its folder for the next, and lets it
// live on, since it is this one.
class EngineLastResort : public testing::Test {
 protected:
  EngineOptions Options(int process = 0) {
    EngineOptions options = KeepingIn(folders_[process].path());
    options.hung_after = std::chrono::hours(1);
    options.end_process = [this, process](int code) {
      CopyLive(folders_[process].path(), folders_[process + 1].path());
      ended_[process].Set(code);
    };
    return options;
  }
  // More ticks than any unit has.
  static bool TickUntil(FakeEngine* fake, const std::function<bool()>& condition) {
    for (int i = 0; i < 1'000'000 && !condition(); ++i) fake->engine->watchdog()->Tick();
    return condition();
  }
  // Once it has this: the watchman may look for stacks longer than the engine waits for it.
  static std::string LogWith(const std::string& last, FakeEngine* fake) {
    std::string log;
    Eventually([&] { return (log = LogOf(fake)).find(last) != std::string::npos; });
    return log;
  }
  static std::string LogOf(FakeEngine* fake) {
    fake->logger.Flush(std::chrono::seconds(20));
    std::string text;
    std::array<char, 4096> piece;
    for (ssize_t got = 1; got > 0; text.append(piece.data(), static_cast<size_t>(got))) {
      got = pread(fileno(fake->log_stream), piece.data(), piece.size(),
                  static_cast<off_t>(text.size()));  // the writer's place stays where it is
      if (got <= 0) break;
    }
    return text;
  }
  // As a process finds them that opens this folder.
  std::map<std::string, int64_t> CrashesIn(int process) const {
    Logger logger(stderr, LogLevel::kError);
    const auto store =
        OpenJobStore({.state_dir = folders_[process].path(), .hooks = nullptr}, &logger);
    std::map<std::string, int64_t> crashes;
    for (const AcceptedJob& job : store->Recover()) crashes[job.snapshot.prompt] = job.crashes;
    return crashes;
  }
  std::array<TemporaryFolder, 4> folders_;
  std::array<Promised<int>, 3> ended_;
};

TEST_F(EngineLastResort, AUnitThatHangsMakesTheEngineUnreadyUntilItEnds) {
  FakeEngine fake(Options());
  fake.model.steps.Close();
  const std::string id = fake.Submit("hangs");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  EXPECT_FALSE(fake.engine->Hung());
  ASSERT_TRUE(TickUntil(&fake, [&] { return fake.engine->Hung().has_value(); }));
  EXPECT_THAT(*fake.engine->Hung(), HasSubstr("step of fake"));
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
  EXPECT_FALSE(fake.engine->Hung());
  EXPECT_EQ(ended_[0].times(), 0u);
  const std::string log = LogOf(&fake);
  EXPECT_THAT(log, HasSubstr("\"event\":\"engine.recovered\""));
  EXPECT_THAT(log, HasSubstr("\"jobs\":\"" + id + "\""));
}

TEST_F(EngineLastResort, AUnitThatDoesNotEndEndsTheProcessAndBothJobsGoOnInTheNext) {
  std::string hangs, waits;
  {
    FakeEngine fake(Options());
    fake.model.steps.Close();
    waits = fake.Submit("waits", [](auto& r) { Steps(r, 6), r.width = 128; });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    hangs = fake.Submit("hangs", [](auto& r) { Steps(r, 6), r.priority = Priority::kUrgent; });
    fake.model.steps.Allow(3);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(4)) << "two steps of the urgent one are done";
    ASSERT_EQ(fake.model.forwards().back(), std::vector<std::string>{"hangs"});
    ASSERT_TRUE(TickUntil(&fake, [&] { return ended_[0].times() > 0; }));
    EXPECT_EQ(ended_[0].value(), kExitHung);
    const std::string last = "\"event\":\"engine.given_up\"", log = LogWith(last, &fake);
    EXPECT_THAT(log, HasSubstr("\"event\":\"engine.hung\""));
    EXPECT_THAT(log, HasSubstr("\"hung\":\"true\"")) << "the engine's own stack";
    EXPECT_THAT(log, HasSubstr(last));
  }
  EXPECT_THAT(CrashesIn(1), UnorderedElementsAre(Pair("hangs", 1), Pair("waits", 0)));
  FakeEngine next(Options(1));
  for (const std::string& id : {hangs, waits}) {
    const JobSnapshot job = next.AwaitEnd(id);
    EXPECT_EQ(job.state, JobState::kSucceeded);
    EXPECT_EQ(job.attempt, 2);
  }
}

TEST_F(EngineLastResort, AJobThatHangsTwiceIsGivenUp) {
  std::string id;
  for (int process = 0; process < 2; ++process) {
    FakeEngine fake(Options(process), /*steps_open=*/false);
    if (process == 0) id = fake.Submit("hangs");
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    ASSERT_TRUE(TickUntil(&fake, [&] { return ended_[process].times() > 0; }));
  }
  FakeEngine last(Options(2));
  EXPECT_EQ(last.AwaitEnd(id).error->reason, "POISON");
}

TEST_F(EngineLastResort, NothingIsWatchedWhereItIsSwitchedOffOrNobodyStartsAnew) {
  EngineOptions off = Options(), alone = Options(1);
  off.hung_after = std::chrono::milliseconds(0);
  alone.end_process = {};
  EXPECT_EQ(FakeEngine(off).engine->watchdog(), nullptr);
  EXPECT_EQ(FakeEngine(alone).engine->watchdog(), nullptr);
}

// Where an error of a lost device comes up.
struct Place {
  const char* name;
  void (*set_up)(FakeModel*);
};

class EngineLosesDevice : public EngineLastResort, public testing::WithParamInterface<Place> {};

TEST_P(EngineLosesDevice, TheProcessEndsAndTheJobHasCrashedAndNotFailed) {
  std::string breaks, waits;
  {
    FakeEngine fake(Options(), /*steps_open=*/false, 2, GetParam().set_up);
    breaks = fake.Submit("breaks", [](auto& r) { r.formats = {ArtifactFormat::kNpy}; });
    if (fake.model.on_begin == nullptr) {
      ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
      waits = fake.Submit("waits", [](auto& r) { r.width = 128, r.priority = Priority::kBatch; });
      fake.model.steps.Open();
    }
    ASSERT_TRUE(ended_[0].Await());
    EXPECT_EQ(ended_[0].value(), kExitDeviceLost);
    EXPECT_THAT(LogOf(&fake), HasSubstr("\"event\":\"device.lost\""));
    EXPECT_EQ(fake.Get(breaks).state, JobState::kRunning) << "as a crash leaves it";
  }
  EXPECT_EQ(ended_[0].times(), 1u) << "nothing is done on a device that is lost";
  const auto crashes = CrashesIn(1);
  EXPECT_EQ(crashes.at("breaks"), 1);
  if (!waits.empty()) {
    EXPECT_EQ(crashes.at("waits"), 0);
  }
  FakeEngine next(Options(1));
  const JobSnapshot job = next.AwaitEnd(breaks);
  EXPECT_EQ(job.state, JobState::kSucceeded) << "on a device that is well";
  EXPECT_EQ(job.attempt, 2);
  if (!waits.empty()) {
    EXPECT_EQ(next.AwaitEnd(waits).state, JobState::kSucceeded);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Everywhere, EngineLosesDevice,
    testing::Values(
        Place{"step", [](FakeModel* m) { m->on_step = [](const auto&, int64_t) { Illegal(); }; }},
        Place{"backend", [](FakeModel* m) { m->on_attention = [](auto) { Illegal(); }; }},
        Place{"frames", [](FakeModel* m) { m->on_finish = [](const auto&) { Illegal(); }; }},
        Place{"beginning", [](FakeModel* m) { m->on_begin = [](const auto&) { Illegal(); }; }}),
    [](const auto& place) { return std::string(place.param.name); });

// Beside the units of jobs: nobody is at fault, and the process ends there and then.
class EngineLosesDeviceBeside : public EngineLastResort {
 protected:
  void ExpectEnded(FakeEngine* fake) {
    ASSERT_TRUE(ended_[0].Await());
    EXPECT_EQ(ended_[0].value(), kExitDeviceLost);
    EXPECT_THAT(LogOf(fake), HasSubstr("\"event\":\"device.lost\""));
  }
};

// What a job has reached is its own.
TEST_F(EngineLosesDeviceBeside, InACheckpoint) {
  {
    FakeEngine fake(Options());
    fake.model.on_save = [] {
      Illegal();
      return std::string();
    };
    fake.Submit("runs", [](auto& r) { Steps(r, 3); });
    ExpectEnded(&fake);
  }
  EXPECT_THAT(CrashesIn(1), UnorderedElementsAre(Pair("runs", 1)));
}

TEST_F(EngineLosesDeviceBeside, InAVerbOfASession) {
  {
    FakeEngine fake(Options());
    fake.model.on_read = Illegal;
    fake.model.steps.Close();
    fake.Submit("runs", [](auto& r) { Steps(r, 3); });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    const auto owner = std::make_shared<SessionOwner>();
    Promised<SessionReply> opened, read;
    SessionRequest request;
    request.generation.prompt = "a session";
    fake.engine->OpenSession(owner, request, [&](SessionReply r) { opened.Set(std::move(r)); });
    fake.model.steps.Allow(1);
    ASSERT_TRUE(opened.Await());
    ASSERT_FALSE(opened.value().error) << opened.value().error->what();
    fake.engine->AskSession(owner, opened.value().state.id, SessionRead{},
                            [&](SessionReply r) { read.Set(std::move(r)); });
    fake.model.steps.Open();
    ExpectEnded(&fake);
    ASSERT_TRUE(read.Await());
    EXPECT_EQ(read.value().error->reason(), "DEVICE_LOST");
  }
  EXPECT_THAT(CrashesIn(1), UnorderedElementsAre(Pair("runs", 0)));
}

TEST_F(EngineLosesDeviceBeside, InTheOpeningOfASession) {
  FakeEngine fake(Options());
  fake.model.on_new_run = Illegal;
  Promised<SessionReply> opened;
  SessionRequest request;
  request.generation.prompt = "a session";
  fake.engine->OpenSession(std::make_shared<SessionOwner>(), request,
                           [&](SessionReply reply) { opened.Set(std::move(reply)); });
  ExpectEnded(&fake);
  ASSERT_TRUE(opened.Await());
}

TEST_F(EngineLosesDeviceBeside, InAMeasurement) {
  FakeEngine fake(Options(), true, 2, [](FakeModel* model) {
    for (FakeBackend* backend : {&model->backends.flash, &model->backends.sdpa}) {
      backend->on_forward = [](const auto&) { Illegal(); };
    }
  });
  Promised<std::optional<Error>> ended;
  fake.engine->tuner().Tune(
      {.model = "", .lengths = {8}, .rows = {1}}, std::make_shared<CancelToken>(),
      [](const TuneProgress&) {}, [&](std::optional<Error> error) { ended.Set(std::move(error)); });
  ExpectEnded(&fake);
  ASSERT_TRUE(ended.Await());
  ASSERT_TRUE(ended.value());
  EXPECT_EQ(ended.value()->reason(), "DEVICE_LOST");
}

// One that loses it always would end each server that follows.
TEST_F(EngineLosesDeviceBeside, InWhatIsMeasuredWhenIdleOnceForEachKindOfCall) {
  for (int process = 0; process < 3; ++process) {
    std::atomic<int> measured = 0;
    EngineOptions options = Options(process);
    options.tune_when_idle = true;
    FakeEngine fake(options, true, 2, [&](FakeModel* model) {
      for (FakeBackend* backend : {&model->backends.flash, &model->backends.sdpa}) {
        backend->on_forward = [&](const auto&) {
          ++measured;
          Illegal();
        };
      }
    });
    EXPECT_EQ(fake.AwaitEnd(fake.Submit("a job")).state, JobState::kSucceeded);
    if (process < 2) {  // calls of self-attention, then of cross-attention
      ASSERT_TRUE(ended_[process].Await());
      EXPECT_EQ(measured, 1);
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // it has been quiet by then
      EXPECT_EQ(measured, 0);
      EXPECT_EQ(ended_[process].times(), 0u);
    }
  }
}

TEST_F(EngineLastResort, AJobThatLosesTheDeviceTwiceIsGivenUp) {
  std::string id;
  const auto breaks = [](FakeModel* m) { m->on_step = [](const auto&, int64_t) { Illegal(); }; };
  for (int process = 0; process < 2; ++process) {
    FakeEngine fake(Options(process), true, 2, breaks);
    if (process == 0) id = fake.Submit("breaks");
    ASSERT_TRUE(ended_[process].Await());
  }
  FakeEngine last(Options(2));
  EXPECT_EQ(last.AwaitEnd(id).error->reason, "POISON");
}

TEST_F(EngineLastResort, WhereNobodyStartsAnewTheJobFailsAndSaysWhy) {
  EngineOptions options = Options();
  options.end_process = {};
  FakeEngine fake(options, true, 2,
                  [](FakeModel* m) { m->on_step = [](const auto&, int64_t) { Illegal(); }; });
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("breaks"));
  EXPECT_EQ(job.error->reason, "DEVICE_LOST");
  EXPECT_THAT(job.error->message, Not(HasSubstr("\n")));
}

}  // namespace
}  // namespace denoised
