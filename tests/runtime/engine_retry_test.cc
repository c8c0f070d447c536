// When a client that was refused may come again: one that obeys finds a place.
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <random>
#include <thread>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using std::chrono::milliseconds;

// A device whose units take their time on the engine's manual clock, and nothing else does: while
// files are written, time stands still. They are written when the next unit stands, so that a job
// gives its place to those that run away after that was chosen, and never before.
class ManualDevice {
 public:
  // `length` of a unit.
  ManualDevice(const EngineOptions& options, std::function<milliseconds(const Unit&)> length)
      : length_(std::move(length)), fake(options, true, 2, [this](FakeModel* model) {
          model->on_unit = [this](const Unit& unit, int64_t) { Run(unit); };
          model->unit_clock = [this] { return fake.clock.now(); };
        }) {
    fake.store->on_artifact = [this](const ArtifactInfo&) { AwaitNextUnit(); };
  }
  ~ManualDevice() {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }

  // Test thread, as the next.
  Engine::SubmitResult Submit(GenerationRequest request) {
    request.formats = {ArtifactFormat::kNpy};  // of frames, so that one unit is of decoding
    auto result = fake.engine->Submit(std::move(request));
    if (std::holds_alternative<JobSnapshot>(result)) ++taken_;
    return result;
  }

  // So much time passes, and units with it; at the end the engine stands in a unit, or
  // has nothing to do.
  void Pass(milliseconds time) {
    const auto until = fake.clock.now() + time;
    while (AwaitUnit() && ends_ <= until) {
      fake.clock.Advance(std::chrono::duration_cast<milliseconds>(ends_ - fake.clock.now()));
      const std::lock_guard lock(mutex_);
      runs_ = false;
      changed_.notify_all();
    }
    fake.clock.Advance(std::chrono::duration_cast<milliseconds>(until - fake.clock.now()));
  }

 private:
  void Run(const Unit& unit) {  // engine thread
    std::unique_lock lock(mutex_);
    runs_ = true;
    ends_ = fake.clock.now() + length_(unit);
    changed_.wait(lock, [this] { return !runs_ || ending_; });
    if (unit.kind == UnitKind::kDecode) ++decoded_;
  }

  void AwaitNextUnit() {  // encoder thread
    for (;;) {
      const bool last = fake.engine->queue_depth() == 0 && fake.engine->running_jobs() == 1;
      std::unique_lock lock(mutex_);
      if (last || changed_.wait_for(lock, milliseconds(1), [this] { return runs_ || ending_; })) {
        return;
      }
    }
  }

  // Of jobs whose only unit of decoding is done.
  bool FilesAreWritten() {
    const int64_t ended = taken_ - fake.engine->queue_depth() - fake.engine->running_jobs();
    const std::lock_guard lock(mutex_);
    return decoded_ == ended;
  }

  // False: nothing is left to do.
  bool AwaitUnit() {
    for (;;) {
      const bool written = FilesAreWritten();
      {
        const std::lock_guard lock(mutex_);
        if (runs_ && written) return true;
      }
      if (fake.engine->WaitIdle(milliseconds(1))) return false;
    }
  }

  const std::function<milliseconds(const Unit&)> length_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool runs_ = false, ending_ = false;          // guarded by mutex_
  int64_t decoded_ = 0;                         // likewise
  int64_t taken_ = 0;                           // the test's thread alone
  std::chrono::steady_clock::time_point ends_;  // of the unit; stands while it runs

 public:
  FakeEngine fake;  // last: it ends first
};

// One step of a job; each takes about so long, a tenth more or less.
milliseconds About(int64_t ms, std::mt19937* random) {
  return milliseconds(std::uniform_int_distribution<int64_t>(9 * ms / 10, 11 * ms / 10)(*random));
}

struct Case {
  const char* name;
  EngineOptions::Policy policy;
  bool batching;
  int64_t max_running_jobs;
};

class EngineRetryObeyed : public testing::TestWithParam<Case> {};

TEST_P(EngineRetryObeyed, OfThoseWhoComeWhenTheyWereToldNineteenOfTwentyGetAPlace) {
  constexpr int kRounds = 100;
  std::mt19937 random(5), noise(7);
  EngineOptions options;
  options.max_queued_jobs = 6;
  options.policy = GetParam().policy;
  options.batching = GetParam().batching;
  options.max_running_jobs = GetParam().max_running_jobs;
  ManualDevice device(options, [&](const Unit& unit) {
    return About(unit.kind == UnitKind::kStep ? 1000 : 300, &noise);
  });
  const auto submit = [&] {
    GenerationRequest request = SmallRequest("some job");
    request.num_inference_steps = std::uniform_int_distribution<int64_t>(2, 30)(random);
    request.width = random() % 2 == 0 ? 64 : 128;
    return device.Submit(std::move(request));
  };
  submit();
  device.Pass(std::chrono::minutes(2));  // it has taught how long units take

  int accepted = 0;
  for (int round = 0; round < kRounds; ++round) {
    auto result = submit();
    while (std::holds_alternative<JobSnapshot>(result)) {
      device.Pass(milliseconds(0));  // the engine has looked at it
      result = submit();
    }
    const Error refused = std::get<Error>(result);
    ASSERT_EQ(refused.reason(), "QUEUE_FULL");
    device.Pass(*refused.retry_after());
    accepted += std::holds_alternative<JobSnapshot>(submit()) ? 1 : 0;
  }
  EXPECT_GE(accepted, 95 * kRounds / 100) << GetParam().name;
}

INSTANTIATE_TEST_SUITE_P(, EngineRetryObeyed,
                         testing::Values(Case{"deadline", EngineOptions::Policy::kDeadline, true,
                                              0},
                                         Case{"alone", EngineOptions::Policy::kDeadline, false, 0},
                                         Case{"two_run", EngineOptions::Policy::kDeadline, true, 2},
                                         Case{"fifo", EngineOptions::Policy::kFifo, false, 0}),
                         [](const auto& of) { return std::string(of.param.name); });

// ---- where all places are those of jobs on their way to the disk

// A queue with one place, which a job has that is not stored yet.
struct Storing {
  explicit Storing(int64_t steps_of_running) : fake(Options()) {
    fake.model.on_unit = [](const Unit&, int64_t) { std::this_thread::sleep_for(milliseconds(5)); };
    fake.AwaitEnd(fake.Submit("teaches how long a step takes"));
    if (steps_of_running > 0) {
      fake.StartBlocked("runs", [&](auto& r) { r.num_inference_steps = steps_of_running; });
    }
    fake.store->on_add = [this](const GenerationRequest&) { disk.Pass(); };
    submits = std::thread([this] {
      GenerationRequest request = SmallRequest("is being stored");
      request.num_inference_steps = 1000;  // so that its turn comes after the other's end
      request.width = 128;
      fake.engine->Submit(std::move(request));
    });
    EXPECT_TRUE(disk.AwaitArrival(1));
  }
  ~Storing() {
    disk.Open();
    if (submits.joinable()) submits.join();
  }
  static EngineOptions Options() {
    EngineOptions options;
    options.max_queued_jobs = 1;
    return options;
  }
  Error Refused() { return std::get<Error>(fake.engine->Submit(SmallRequest("refused"))); }

  Gate disk{false};
  FakeEngine fake;
  std::thread submits;
};

TEST(EngineRetry, APlaceOfAJobThatIsBeingStoredIsFreeWhenItBegins) {
  Storing storing(/*steps_of_running=*/800);
  const auto retry = *storing.Refused().retry_after();
  EXPECT_GT(retry, std::chrono::seconds(3)) << "800 steps of 5 ms or more run first";
  // What the queue says once it waits there: the running job stands in its first step.
  storing.disk.Open();
  storing.submits.join();
  EXPECT_EQ(storing.Refused().retry_after(), retry);
}

TEST(EngineRetry, WhereNothingRunsItBeginsAtOnce) {
  Storing storing(/*steps_of_running=*/0);
  EXPECT_EQ(storing.Refused().retry_after(), std::chrono::seconds(1));
}

}  // namespace
}  // namespace denoised
