// How the kernels' drivers get threads without knowing whose they are, and share out tasks among
// them.
#ifndef DENOISED_BACKENDS_KERNELS_WORKERS_H_
#define DENOISED_BACKENDS_KERNELS_WORKERS_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace denoised::kernels {

// Threads that this machine has, 1 at least. Asked once: the answer is read from files.
inline int64_t HardwareThreads() {
  static const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return threads;
}

// One of `count` that run at once.
struct Worker {
  int64_t index = 0, count = 1;
};

// Runs `work` on up to min(tasks, threads) threads at once, as workers of one count; each run takes
// tasks until none is left. Who has an index is best always the same thread.
using RunWorkers =
    std::function<void(int64_t tasks, const std::function<void(const Worker&)>& work)>;

// A RunWorkers on the caller's thread alone.
inline void RunHere(int64_t /*tasks*/, const std::function<void(const Worker&)>& work) { work({}); }

// The tasks of one run. Each worker takes those of its own share in order, so that over many calls
// a part of the data stays in one core's cache, and then what others have left of theirs.
class TaskShares {
 public:
  explicit TaskShares(int64_t tasks) : tasks_(tasks) {}
  TaskShares(const TaskShares&) = delete;
  TaskShares& operator=(const TaskShares&) = delete;

  // The next one; -1: none is left. Any thread.
  int64_t Take(const Worker& worker) {
    const int64_t shares = std::min<int64_t>(worker.count, kMostShares);
    for (int64_t i = 0; i < shares; ++i) {
      const int64_t share = (worker.index + i) % shares;
      const int64_t begin = share * tasks_ / shares, end = (share + 1) * tasks_ / shares;
      std::atomic<int64_t>& taken = taken_[share].count;
      if (begin + taken.load(std::memory_order_relaxed) >= end) continue;
      const int64_t task = begin + taken.fetch_add(1, std::memory_order_relaxed);
      if (task < end) return task;
    }
    return -1;
  }

 private:
  static constexpr int64_t kMostShares = 64;
  struct Taken {
    std::atomic<int64_t> count = 0;
    char room[64 - sizeof(count)];  // to the next one's line
  };

  const int64_t tasks_;
  std::array<Taken, kMostShares> taken_;
};

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_WORKERS_H_
