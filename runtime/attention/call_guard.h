// What stands around the attention calls of one model: drills before them, and what became of a
// backend that threw. Torch-free.
#ifndef DENOISED_RUNTIME_ATTENTION_CALL_GUARD_H_
#define DENOISED_RUNTIME_ATTENTION_CALL_GUARD_H_

#include <optional>
#include <utility>

#include "backends/attention_spec.h"
#include "backends/error.h"
#include "backends/stop_point.h"
#include "runtime/attention/breakers.h"
#include "runtime/attention/drills.h"
#include "runtime/attention/forward_context.h"
#include "runtime/caught.h"

namespace denoised {

class Shadows;

// A call in which a backend threw.
struct CallFailure {
  AttnBackend backend = AttnBackend::kReference;
  AttentionRole role = AttentionRole::kSelf;
  Error error;
};

// One a model, shared by all of its work. Engine thread, except breakers and drills.
class CallGuard {
 public:
  explicit CallGuard(Breakers::Clock clock = std::chrono::steady_clock::now)
      : breakers_(std::move(clock)) {}

  Breakers& breakers() { return breakers_; }
  // Null where there are none; before any call.
  const Drills* drills() const { return drills_; }
  void set_drills(const Drills* drills) { drills_ = drills; }

  // Null where nothing is compared; before any call.
  Shadows* shadows() const { return shadows_; }
  void set_shadows(Shadows* shadows) { shadows_ = shadows; }

  void NoteFailure(CallFailure failure) { failure_ = std::move(failure); }
  // The last one since this was asked last.
  std::optional<CallFailure> TakeFailure() { return std::exchange(failure_, std::nullopt); }

 private:
  Breakers breakers_;
  const Drills* drills_ = nullptr;
  Shadows* shadows_ = nullptr;
  std::optional<CallFailure> failure_;
};

// What `call`, a call of the slot's backend, gives. What it throws is noted on the slot's guard,
// unless it was a stop point's.
template <typename Call>
auto Guarded(const AttentionSlot& slot, AttentionRole role, const Call& call) {
  if (slot.guard == nullptr) return call();
  try {
    if (slot.guard->drills() != nullptr) slot.guard->drills()->Before(slot.id);
    return call();
  } catch (...) {
    if (!WhyStop()) slot.guard->NoteFailure({slot.id, role, *Caught([] { throw; })});
    throw;
  }
}

// Whether a drill has the slot's backend give NaN.
inline bool GivesNan(const AttentionSlot& slot) {
  return slot.guard != nullptr && slot.guard->drills() != nullptr &&
         slot.guard->drills()->GivesNan(slot.id);
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_CALL_GUARD_H_
