// What stands around attention while it runs, as operators see it: faults that are rehearsed, and
// circuit breakers. Torch-free plain values.
#ifndef DENOISED_RUNTIME_ATTENTION_GUARD_H_
#define DENOISED_RUNTIME_ATTENTION_GUARD_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "backends/attn_backend.h"

namespace denoised {

// What a backend does wrong in a drill: it throws, it stands still (until a stop point, or the
// drill's end), or what it gives is NaN.
enum class Fault : uint8_t { kThrow, kStall, kNan };
std::string_view FaultName(Fault fault);  // "throw", "stall", "nan"
std::optional<Fault> FaultFromName(std::string_view name);

// A rehearsal: from now on, for `ttl`, every call of the backend.
struct DrillRequest {
  AttnBackend backend = AttnBackend::kReference;
  Fault fault = Fault::kThrow;
  std::chrono::milliseconds ttl{0};
  std::string reason = {}, by = {};
  static constexpr std::chrono::minutes kMostTtl{10};
};

// Of a circuit breaker: after several failures in a row nobody is given the backend, until its time
// is over and one probe has gone well.
enum class BreakerState : uint8_t { kClosed, kHalfOpen, kOpen };
std::string_view BreakerStateName(BreakerState state);  // "closed", "half_open", "open"

// A circuit breaker that is not closed.
struct BreakerInfo {
  std::string model;
  AttnBackend backend = AttnBackend::kReference;
  std::string shape;  // the class of its calls: ShapeClass
  BreakerState state = BreakerState::kOpen;
  std::chrono::milliseconds remaining{0};  // until a probe may go; of kOpen
  int64_t failures = 0;                    // in a row
  std::string last_error;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_GUARD_H_
