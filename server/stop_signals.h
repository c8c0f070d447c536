// SIGTERM and SIGINT, from the first line of main to the last.
//
// They are taken by a thread of their own with sigwait, so that no handler runs anywhere and
// nothing that main does (loading models for minutes) delays them. Before any work may begin a
// signal ends the process at once: there is nothing yet that a longer stop would keep. Afterwards
// the first one is main's to act on, and a second one means now: that the first one came is noted
// by then, so that it takes nothing with it that the first one would have kept.
#ifndef DENOISED_SERVER_STOP_SIGNALS_H_
#define DENOISED_SERVER_STOP_SIGNALS_H_

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>

#include "runtime/log.h"

namespace denoised {

class StopSignals {
 public:
  // Before any other thread starts, so that all inherit the mask. Lives as long as the process.
  StopSignals();
  ~StopSignals() = delete;

  // From now on an early stop is logged.
  void LogTo(Logger* logger);
  // From now on signals are waited for. Does not return where one came before. `first` runs on the
  // thread of the signals at the first one, before a second one is looked at or Wait returns: it
  // waits for nothing that may take long.
  void BeginServing(std::function<void()> first);
  // Waits for the first signal; returns its number.
  int Wait();
  // Whatever still runs by then: the process ends with `code`.
  static void ExitAfter(std::chrono::milliseconds time, int code);

 private:
  void Run();
  void StopEarly(int number);

  std::mutex mutex_;
  std::condition_variable came_;
  bool serving_ = false;         // guarded by mutex_
  std::function<void()> first_;  // guarded by mutex_
  int number_ = 0;               // guarded by mutex_; of the first signal while serving
  Logger* logger_ = nullptr;     // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_SERVER_STOP_SIGNALS_H_
