// A few threads for the work of a call that is too long for gRPC's own: parsing and checking large
// messages, asking the engine what would run (which may call LibTorch), writing large answers.
// Bounded in tasks and bytes.
#ifndef DENOISED_SERVER_WORK_POOL_H_
#define DENOISED_SERVER_WORK_POOL_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace denoised {

class WorkPool {
 public:
  // At most `max_tasks` tasks wait, and `max_bytes` of messages wait, run and go on elsewhere.
  WorkPool(int threads, size_t max_tasks, size_t max_bytes);
  // Runs what was posted, then ends.
  ~WorkPool();
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // The room that a message takes, until the last copy is gone. The pool outlives it.
  using Room = std::shared_ptr<void>;
  // Any thread; never blocks. False where there is no room: the task is gone. A task that goes on
  // elsewhere keeps its room until it has ended there.
  [[nodiscard]] bool Post(size_t bytes, std::function<void(Room)> task);
  [[nodiscard]] bool Post(size_t bytes, std::function<void()> task);

 private:
  struct Task {
    Room room;
    std::function<void(Room)> run;
  };
  void Run();

  const size_t max_tasks_, max_bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;            // guarded by mutex_
  size_t bytes_ = 0;                  // guarded by mutex_; of all rooms
  bool ending_ = false;               // guarded by mutex_
  std::vector<std::thread> threads_;  // last: they use the others
};

}  // namespace denoised

#endif  // DENOISED_SERVER_WORK_POOL_H_
