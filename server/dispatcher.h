// One thread that runs short tasks in order. Wake-ups of job watchers go through it, so that the
// engine thread, which causes them, never builds or writes a message.
#ifndef DENOISED_SERVER_DISPATCHER_H_
#define DENOISED_SERVER_DISPATCHER_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace denoised {

class Dispatcher {
 public:
  Dispatcher() : thread_([this] { Run(); }) {}
  // Runs what was posted, then ends.
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  // Any thread; never blocks for longer than a push.
  void Post(std::function<void()> task);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  bool ending_ = false;                      // guarded by mutex_
  std::thread thread_;                       // last: it uses the others
};

}  // namespace denoised

#endif  // DENOISED_SERVER_DISPATCHER_H_
