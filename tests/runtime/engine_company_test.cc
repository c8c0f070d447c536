// Callers of Denoise that were answered together: who waits for whom, and who for nobody. A wait is
// 50 ms here. As a machine may stand still at any moment, several are looked at: the shortest where
// nobody is to wait, and the longest where somebody is.
#include <gtest/gtest.h>

#include <thread>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using Answer = std::shared_ptr<Promised<Engine::DenoiseOutcome>>;

constexpr int kRounds = 20;
constexpr milliseconds kForward(60), kAtOnce(25), kAWait(40);

DenoiseRequest Step(DType dtype = DType::kFloat32) {
  DenoiseRequest request;
  request.latents = {dtype, {1}, dtype == DType::kFloat32 ? "abcd" : "abcdefgh"};
  return request;
}

// A model whose units all take the same time, whatever their number of rows, and remember when they
// began.
class Callers {
 public:
  Callers()
      : fake_({}, true, 2, [this](FakeModel* model) {
          model->on_unit = [this](const Unit&, int64_t) {
            {
              const std::lock_guard lock(mutex_);
              began_.push_back(Clock::now());
            }
            std::this_thread::sleep_for(kForward);
          };
        }) {}

  FakeEngine& fake() { return fake_; }

  Answer Call(DenoiseRequest request = Step()) {
    auto answer = std::make_shared<Promised<Engine::DenoiseOutcome>>();
    fake_.engine->Denoise(std::move(request), nullptr,
                          [answer](Engine::DenoiseOutcome outcome) { answer->Set(outcome); });
    return answer;
  }
  std::vector<Answer> Calls(int count) {
    std::vector<Answer> answers;
    for (int i = 0; i < count; ++i) answers.push_back(Call());
    return answers;
  }
  static void AwaitAll(const std::vector<Answer>& answers) {
    for (const Answer& answer : answers) ASSERT_TRUE(answer->Await());
  }
  size_t units() const {
    const std::lock_guard lock(mutex_);
    return began_.size();
  }
  size_t rows_of_last() const { return fake_.model.forwards().back().size(); }

  // Answers so many calls together, in one forward.
  void Meet(int count) {
    for (int i = 0; i < kRounds; ++i) {
      AwaitAll(Calls(count));
      if (rows_of_last() == static_cast<size_t>(count)) return;
    }
    ADD_FAILURE() << count << " calls at once never met";
  }
  // From now until the next unit begins.
  milliseconds UntilTheNext(const std::function<void()>& call) {
    const size_t before = units();
    const auto start = Clock::now();
    call();
    while (units() == before && Clock::now() < start + kPatience) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    const std::lock_guard lock(mutex_);
    return std::chrono::duration_cast<milliseconds>(began_.at(before) - start);
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Clock::time_point> began_;
  FakeEngine fake_;
};

// Of callers that met, the first to come back; what it waited, the shortest and the longest.
std::pair<milliseconds, milliseconds> WaitsOf(const std::function<milliseconds(Callers*)>& round) {
  Callers callers;
  std::pair<milliseconds, milliseconds> waits = {kPatience, milliseconds(0)};
  for (int i = 0; i < 5; ++i) {
    callers.Meet(4);
    const milliseconds wait = round(&callers);
    waits = {std::min(waits.first, wait), std::max(waits.second, wait)};
    EXPECT_TRUE(callers.fake().WaitIdle());
  }
  return waits;
}
milliseconds ShortestWait(const std::function<milliseconds(Callers*)>& round) {
  return WaitsOf(round).first;
}
milliseconds LongestWait(const std::function<milliseconds(Callers*)>& round) {
  return WaitsOf(round).second;
}

void ExpectToMeetAgain(Callers* callers) {
  for (int i = 0; i < kRounds; ++i) {
    callers->Meet(4);
    std::vector<Answer> answers = {callers->Call()};
    for (int next = 1; next < 4; ++next) {
      std::this_thread::sleep_for(milliseconds(5));
      answers.push_back(callers->Call());
    }
    Callers::AwaitAll(answers);
    if (callers->rows_of_last() == 4) return;
  }
  ADD_FAILURE() << "each ran before the last one was there";
}

TEST(EngineCompany, TheFirstOneBackWaitsForTheOthers) {
  Callers callers;
  ExpectToMeetAgain(&callers);
}

TEST(EngineCompany, AfterAStreamThatLeftWithoutASessionToo) {
  Callers callers;
  const auto owner = std::make_shared<SessionOwner>();
  callers.fake().engine->LeaveSessions(owner);
  ExpectToMeetAgain(&callers);
}

TEST(EngineCompany, WhoComesBackAloneWaitsOnce) {
  const auto alone = [](Callers* callers) {
    return callers->UntilTheNext([&] { callers->Call(); });
  };
  EXPECT_GE(LongestWait(alone), kAWait);
  const auto next = [&](Callers* callers) {
    alone(callers);
    EXPECT_TRUE(callers->fake().WaitIdle());
    return alone(callers);
  };
  EXPECT_LT(ShortestWait(next), kAtOnce);
}

TEST(EngineCompany, NobodyWaitsForCallsOfAnotherShape) {
  EXPECT_LT(ShortestWait([](Callers* callers) {
              return callers->UntilTheNext([&] { callers->Call(Step(DType::kInt64)); });
            }),
            kAtOnce);
}

TEST(EngineCompany, ACallOfAnotherShapeEndsTheWait) {
  EXPECT_LT(ShortestWait([](Callers* callers) {
              return callers->UntilTheNext([&] {
                callers->Call();
                callers->Call(Step(DType::kInt64));
              });
            }),
            kAtOnce);
}

TEST(EngineCompany, AJobEndsTheWait) {
  EXPECT_LT(ShortestWait([](Callers* callers) {
              return callers->UntilTheNext([&] {
                callers->Call();
                callers->fake().Submit("a job");
              });
            }),
            kAtOnce);
}

TEST(EngineCompany, ADeadlineThatIsNearIsNotWaitedAway) {
  const auto call_within = [](milliseconds left) {
    return [left](Callers* callers) {
      return callers->UntilTheNext([&] {
        DenoiseRequest request = Step();
        request.deadline = callers->fake().clock.now() + left;
        callers->Call(request);
      });
    };
  };
  EXPECT_LT(ShortestWait(call_within(2 * kForward)), kAtOnce);
  EXPECT_GE(LongestWait(call_within(20 * kForward)), kAWait);
}

// Two callers, the first of whom calls again while the second has not been answered, are two.
TEST(EngineCompany, WhoIsBackBeforeTheLastAnswerIsNotCountedTwice) {
  Callers callers;
  milliseconds shortest = kPatience;
  for (int i = 0; i < kRounds; ++i) {
    Promised<bool> again;
    Answer second;
    const auto met = [&](Engine::DenoiseOutcome) {
      callers.Call();
      again.Set(true);
    };
    const Answer blocker = callers.Call();
    callers.fake().engine->Denoise(Step(), nullptr, met);
    second = callers.Call();
    ASSERT_TRUE(again.Await());
    ASSERT_TRUE(second->Await());
    const bool two = callers.rows_of_last() == 2;
    const milliseconds wait = callers.UntilTheNext([&] { callers.Call(); });
    if (two && callers.rows_of_last() == 2) shortest = std::min(shortest, wait);
    ASSERT_TRUE(callers.fake().WaitIdle());
  }
  EXPECT_LT(shortest, kAtOnce);
}

}  // namespace
}  // namespace denoised
