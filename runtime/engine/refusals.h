// What the engine says where work ends early or is not taken.
#ifndef DENOISED_RUNTIME_ENGINE_REFUSALS_H_
#define DENOISED_RUNTIME_ENGINE_REFUSALS_H_

#include <chrono>
#include <string>

#include "backends/error.h"
#include "runtime/engine/memory_ladder.h"

namespace denoised {

inline Error Cancelled() { return Error(StatusCode::kCancelled, "cancelled", "", "CANCELLED"); }

inline Error DeadlinePassed() {
  return Error(StatusCode::kDeadlineExceeded, "the deadline passed before the work was done", "",
               "DEADLINE_EXCEEDED");
}

// About what it takes until there is another server, or this one again.
inline constexpr std::chrono::seconds kAnotherServer{10};

inline Error Draining() {
  return Error(StatusCode::kUnavailable, "the server is draining and takes no new work", "",
               "DRAINING")
      .RetryAfter(kAnotherServer);
}

inline Error Stopped() {
  return Error(StatusCode::kUnavailable, "the server stopped before the work was done", "",
               "DRAINING")
      .RetryAfter(kAnotherServer);
}

// About what it takes until somebody has left and the memory is free.
inline constexpr std::chrono::seconds kMemoryRelief{5};

// Of new work. Work that would never fit is refused otherwise, and without a time to retry.
inline Error MemoryIsShort(const MemoryPressure& pressure) {
  return Error(StatusCode::kResourceExhausted, ShortText(pressure), "", "MEMORY")
      .RetryAfter(kMemoryRelief);
}

// Of work whose model an operator took away.
inline Error Unloaded(const std::string& model) {
  return Error(StatusCode::kAborted, "model " + model + " was unloaded before the work was done",
               "", "MODEL_UNLOADED");
}

// Of a job that would be nobody's.
inline Error CallIsGone() {
  return Error(StatusCode::kCancelled, "the call that the job belonged to ended with its server",
               "", "CALL_GONE");
}

inline Error UnknownJob(const std::string& id) {
  return Error(StatusCode::kNotFound, "job_id: no job is called \"" + id + "\"", "job_id",
               "JOB_NOT_FOUND");
}

inline Error UnknownSession(const std::string& id) {
  return Error(StatusCode::kNotFound, "session_id: this stream has no session \"" + id + "\"",
               "session_id", "SESSION_NOT_FOUND");
}

inline Error WrongState(const std::string& what, const std::string& reason) {
  return Error(StatusCode::kFailedPrecondition, what, "", reason);
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_REFUSALS_H_
