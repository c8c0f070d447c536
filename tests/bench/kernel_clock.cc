#include "tests/bench/kernel_clock.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>

#include "backends/kernels/workers.h"

namespace denoised {
namespace {

using Work = std::function<void(const kernels::Worker&)>;

thread_local double t_seconds = 0;
thread_local bool t_inside = false;

int64_t Now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

double Seconds(int64_t ticks) {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::duration(ticks)).count();
}

// When the first worker began and the last one ended; any thread.
class Span {
 public:
  void Begin(int64_t now) { Lower(&begin_, now, std::less<>()); }
  void End(int64_t now) { Lower(&end_, now, std::greater<>()); }
  double seconds() const { return Seconds(std::max<int64_t>(0, end_ - begin_)); }

 private:
  template <class Before>
  static void Lower(std::atomic<int64_t>* kept, int64_t value, Before before) {
    int64_t was = *kept;
    while (before(value, was) && !kept->compare_exchange_weak(was, value)) {
    }
  }

  std::atomic<int64_t> begin_ = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> end_ = 0;
};

}  // namespace

void RealRunOnIntraOpThreads(int64_t tasks, const Work& work) __asm__(
    "__real__ZN8denoised19RunOnIntraOpThreadsElRKSt8functionIFvRKNS_7kernels6WorkerEEE");
void TimedRunOnIntraOpThreads(int64_t tasks, const Work& work) __asm__(
    "__wrap__ZN8denoised19RunOnIntraOpThreadsElRKSt8functionIFvRKNS_7kernels6WorkerEEE");

void TimedRunOnIntraOpThreads(int64_t tasks, const Work& work) {
  if (t_inside) return RealRunOnIntraOpThreads(tasks, work);
  Span span;
  RealRunOnIntraOpThreads(tasks, [&](const kernels::Worker& worker) {
    const bool before = std::exchange(t_inside, true);
    span.Begin(Now());
    work(worker);
    span.End(Now());
    t_inside = before;
  });
  t_seconds += span.seconds();
}

double KernelSeconds() { return t_seconds; }

}  // namespace denoised
