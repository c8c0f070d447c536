// Faults that are rehearsed: a named backend throws, stands still or gives NaN for a bounded time.
// Torch-free.
#ifndef DENOISED_RUNTIME_ATTENTION_DRILLS_H_
#define DENOISED_RUNTIME_ATTENTION_DRILLS_H_

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>

#include "runtime/attention_guard.h"

namespace denoised {

// Owned by the engine, asked by attention layers. Any thread.
class Drills {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;
  explicit Drills(Clock clock = std::chrono::steady_clock::now) : clock_(std::move(clock)) {}

  // Takes the place of the backend's earlier one. Throws INVALID_ARGUMENT naming "ttl" where it is
  // not in (0, DrillRequest::kMostTtl].
  void Begin(const DrillRequest& request);

  // What the backend is to do wrong now.
  std::optional<Fault> Of(AttnBackend backend) const;
  // What a call of it does before its work: throws (INTERNAL, reason DRILL), or returns late. A
  // stop point's Error ends the waiting.
  void Before(AttnBackend backend) const;
  bool GivesNan(AttnBackend backend) const { return Of(backend) == Fault::kNan; }

 private:
  struct Drill {
    Fault fault;
    std::chrono::steady_clock::time_point ends_at;
  };

  const Clock clock_;
  std::atomic<bool> any_ = false;  // was ever begun
  mutable std::mutex mutex_;       // guards drills_
  std::array<std::optional<Drill>, kNumAttnBackends> drills_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_DRILLS_H_
