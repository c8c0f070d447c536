// One thread that looks after something again and again. Torch-free.
#ifndef DENOISED_RUNTIME_TICKER_H_
#define DENOISED_RUNTIME_TICKER_H_

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace denoised {

class Ticker {
 public:
  // Calls `tick`, which must not throw, after each `period` until the end; never two at a time.
  Ticker(std::chrono::milliseconds period, std::function<void()> tick);
  // Waits for a tick under way.
  ~Ticker();
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;

  // One on the caller's thread, beside those of the period. Any thread.
  void Now();
  // One on the ticker's own thread, without waiting for the end of the period. Any thread.
  void Soon();

 private:
  void Run(std::chrono::milliseconds period);

  const std::function<void()> tick_;
  std::mutex tick_mutex_;  // held by a tick
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false, soon_ = false;  // guarded by mutex_
  std::thread thread_;                  // last: it uses the others
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TICKER_H_
