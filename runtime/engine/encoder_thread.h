// Writes files beside the engine thread: x264, SHA-256 and disks hold no step up.
#ifndef DENOISED_RUNTIME_ENGINE_ENCODER_THREAD_H_
#define DENOISED_RUNTIME_ENGINE_ENCODER_THREAD_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace denoised {

// Any thread posts; tasks run in order on one thread, and must not throw.
class EncoderThread {
 public:
  EncoderThread();
  ~EncoderThread();  // as Join
  void Post(std::function<void()> task);
  // Runs what was posted, then ends the thread. Nothing is posted afterwards.
  void Join();

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool ending_ = false;
  std::thread thread_;  // last: starts when everything else is there
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_ENCODER_THREAD_H_
