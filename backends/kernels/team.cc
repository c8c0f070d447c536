#include "backends/kernels/team.h"

#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

namespace denoised::kernels {
namespace {

// Longer than what lies between two loops of a forward, shorter than what a sleeper's waking costs
// a few times over.
constexpr std::chrono::microseconds kSpin{50};

thread_local bool t_working = false;

// Waits until `state` is no longer `value`; what it then is.
uint32_t AwaitChange(const std::atomic<uint32_t>& state, uint32_t value) {
  constexpr int kLooks = 16;  // between two looks at the clock
  const auto end = std::chrono::steady_clock::now() + kSpin;
  uint32_t now = 0;
  do {
    for (int i = 0; i < kLooks; ++i) {
      if ((now = state.load(std::memory_order_acquire)) != value) return now;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  while ((now = state.load(std::memory_order_acquire)) == value) {
    state.wait(value, std::memory_order_acquire);
  }
  return now;
}

}  // namespace

// The owner calls, and calls back a helper that has not begun; the helper begins, and is done.
class Team::Helper {
 public:
  Helper() : thread_([this] { Serve(); }) {}
  ~Helper() {
    Set(kQuit);
    thread_.join();
  }
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  void Call(const std::function<void(const Worker&)>& work, const Worker& worker) {
    work_ = &work;
    worker_ = worker;
    Set(kCalled);
  }

  // Returns once the helper does not touch the work any more; what it threw.
  std::exception_ptr Dismiss() {
    uint32_t state = kCalled;
    if (state_.compare_exchange_strong(state, kIdle)) return nullptr;
    while (state == kWorking) state = AwaitChange(state_, kWorking);
    return std::exchange(thrown_, nullptr);
  }

 private:
  enum State : uint32_t { kIdle, kCalled, kWorking, kQuit };

  void Set(State state) {
    state_.store(state);
    state_.notify_one();
  }

  void Serve() {
    t_working = true;
    for (uint32_t state; (state = AwaitChange(state_, kIdle)) != kQuit;) {
      if (!state_.compare_exchange_strong(state, kWorking)) continue;
      try {
        (*work_)(worker_);
      } catch (...) {
        thrown_ = std::current_exception();
      }
      Set(kIdle);
    }
  }

  std::atomic<uint32_t> state_ = kIdle;
  const std::function<void(const Worker&)>* work_ = nullptr;
  Worker worker_;
  std::exception_ptr thrown_;
  std::thread thread_;
};

Team::Team() = default;
Team::~Team() = default;

void Team::Run(int64_t count, const std::function<void(const Worker&)>& work) {
  if (count <= 1 || t_working) return work({});
  const auto helpers = static_cast<size_t>(count - 1);
  while (helpers_.size() < helpers) helpers_.push_back(std::make_unique<Helper>());
  for (size_t i = 0; i < helpers; ++i) {
    helpers_[i]->Call(work, {static_cast<int64_t>(i) + 1, count});
  }
  t_working = true;
  std::exception_ptr thrown;
  try {
    work({0, count});
  } catch (...) {
    thrown = std::current_exception();
  }
  t_working = false;
  for (size_t i = 0; i < helpers; ++i) {
    const std::exception_ptr theirs = helpers_[i]->Dismiss();
    if (!thrown) thrown = theirs;
  }
  if (thrown) std::rethrow_exception(thrown);
}

Team& OwnTeam() {
  static thread_local Team team;
  return team;
}

}  // namespace denoised::kernels
