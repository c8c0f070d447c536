// One thread that runs tasks in order: what its callers must not wait for. Torch-free.
#ifndef DENOISED_RUNTIME_TASK_THREAD_H_
#define DENOISED_RUNTIME_TASK_THREAD_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace denoised {

class TaskThread {
 public:
  TaskThread() : thread_([this] { Run(); }) {}
  ~TaskThread() { Join(); }
  TaskThread(const TaskThread&) = delete;
  TaskThread& operator=(const TaskThread&) = delete;

  // Any thread; never blocks for longer than a push. Tasks must not throw.
  void Post(std::function<void()> task);
  // Runs what was posted, then ends the thread. Nothing is posted afterwards.
  void Join();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  bool ending_ = false;                      // guarded by mutex_
  std::thread thread_;                       // last: it uses the others
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TASK_THREAD_H_
