// A session inside the engine. Between its requests it holds memory and waits for nothing; with
// steps to do it is in the queue like a job that has begun.
#ifndef DENOISED_RUNTIME_ENGINE_SESSION_WORK_H_
#define DENOISED_RUNTIME_ENGINE_SESSION_WORK_H_

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/engine/work.h"
#include "runtime/session.h"

namespace denoised {

struct SessionWork : TrajectoryWork {
  // A verb on its way.
  struct Asked {
    SessionVerb verb;
    std::optional<Error> refused;  // answered in its turn all the same
    Engine::SessionDone done;
    int64_t bytes = 0;  // that it holds
    std::chrono::steady_clock::time_point at = std::chrono::steady_clock::now();
  };

  int64_t request_bytes() const override { return bytes; }
  bool is_job() const override { return false; }
  bool is_session() const override { return true; }

  std::shared_ptr<SessionOwner> owner;
  int64_t bytes = 0;                           // of what it was opened with
  bool can_guide = true;                       // there is something to steer away from
  std::deque<Asked> asked;                     // guarded by the engine's mutex, as the next two
  bool ended = false;                          // takes no more
  std::chrono::steady_clock::time_point used;  // when it was last asked or answered

  // Engine thread.
  SessionGiven given;           // until it is opened
  Engine::SessionDone opened;   // likewise
  std::optional<Asked> steps;   // that it does: it is in the queue
  int64_t steps_wanted = 0;     // of those that are still to come
  double step_seconds = 0;      // in units of them
  std::string fields, history;  // for its fingerprint; see receipt.h
  bool changed = false;         // by other than steps
};
using SessionPtr = std::shared_ptr<SessionWork>;

// Null where it is none.
inline SessionPtr SessionOf(const WorkPtr& work) {
  return work->is_session() ? std::static_pointer_cast<SessionWork>(work) : nullptr;
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_SESSION_WORK_H_
