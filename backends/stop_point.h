// Points at which long work asks whether to go on. Torch-free.
//
// Who starts the work says for its thread when to stop (ScopedStopCheck); what takes long asks
// between two of its pieces, however deep below. A stop is an Error that unwinds the work: what it
// made so far is lost, what it was given is untouched. Threads that help have no check of their
// own: they learn of a stop from a SharedStop.
#ifndef DENOISED_BACKENDS_STOP_POINT_H_
#define DENOISED_BACKENDS_STOP_POINT_H_

#include <atomic>
#include <functional>
#include <optional>

#include "backends/error.h"

namespace denoised {

// Until the end of the scope, stop points of this thread ask `why`: an error to throw, or nothing.
// The innermost scope answers. `why` is called often: some tens of nanoseconds, no blocking.
class ScopedStopCheck {
 public:
  using Why = std::function<std::optional<Error>()>;
  explicit ScopedStopCheck(Why why);
  ~ScopedStopCheck();
  ScopedStopCheck(const ScopedStopCheck&) = delete;
  ScopedStopCheck& operator=(const ScopedStopCheck&) = delete;

 private:
  friend std::optional<Error> WhyStop();
  const Why why_;
  const ScopedStopCheck* const previous_;
};

// What this thread's check says; nothing on a thread without one.
std::optional<Error> WhyStop();

// Throws it.
void StopPoint();

// One piece of work that several threads share, its caller among them.
class SharedStop {
 public:
  // In any of the threads, between two pieces: true once all should leave.
  bool Asked();
  // On the caller's thread when all have left: throws where they left early.
  void ThrowIfAsked() const;

 private:
  std::atomic<bool> asked_{false};
  std::optional<Error> why_;  // by the one thread that has a check
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_STOP_POINT_H_
