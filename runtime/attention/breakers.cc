#include "runtime/attention/breakers.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace denoised {
namespace {

using std::chrono::steady_clock;

int64_t Nanoseconds(steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

std::string Bucket(int64_t length) {
  return length <= 0 ? "unknown" : std::to_string(std::bit_ceil(static_cast<uint64_t>(length)));
}

}  // namespace

std::string ShapeClass(const AttentionSpec& spec) {
  std::string text = std::string(AttentionRoleName(spec.role)) + " " +
                     std::string(DTypeName(spec.dtype)) + " head " +
                     std::to_string(spec.head_size) + " queries " + Bucket(spec.q_len) + " keys " +
                     Bucket(spec.kv_len);
  if (spec.causal) text += " causal";
  if (spec.has_mask) text += " masked";
  return text;
}

Breakers::Breaker* Breakers::Find(AttnBackend backend, const AttentionSpec& spec) const {
  const std::string shape = ShapeClass(spec);
  const auto found = std::ranges::find_if(breakers_, [&](const Breaker& breaker) {
    return breaker.backend == backend && breaker.shape == shape;
  });
  return found == breakers_.end() ? nullptr : &*found;
}

BreakerState Breakers::StateOf(const Breaker& breaker) const {
  if (!breaker.open_until) return BreakerState::kClosed;
  return clock_() < *breaker.open_until ? BreakerState::kOpen : BreakerState::kHalfOpen;
}

// Rounded up: it is never said to be over before it is.
std::chrono::milliseconds Breakers::Remaining(const Breaker& breaker) const {
  if (StateOf(breaker) != BreakerState::kOpen) return std::chrono::milliseconds(0);
  return std::chrono::ceil<std::chrono::milliseconds>(*breaker.open_until - clock_());
}

std::optional<std::string> Breakers::WhyNot(AttnBackend backend, const AttentionSpec& spec,
                                            Asker asker) const {
  if (!any_) return std::nullopt;
  const std::lock_guard lock(mutex_);
  const Breaker* breaker = Find(backend, spec);
  if (breaker == nullptr || !breaker->open_until) return std::nullopt;
  const std::string after =
      " after " + std::to_string(breaker->failures) + " failures: " + breaker->last_error;
  if (StateOf(*breaker) == BreakerState::kOpen) {
    const auto seconds = std::chrono::ceil<std::chrono::seconds>(Remaining(*breaker));
    return "circuit breaker open" + after +
           (asker == nullptr ? "; probe in " + std::to_string(seconds.count()) + " s" : "");
  }
  if (breaker->probe == nullptr || breaker->probe == asker) return std::nullopt;
  return "circuit breaker half open" + after + "; a probe is under way";
}

void Breakers::Claim(AttnBackend backend, const AttentionSpec& spec, Asker asker) {
  if (!any_) return;
  const std::lock_guard lock(mutex_);
  Breaker* breaker = Find(backend, spec);
  if (breaker == nullptr || !breaker->open_until || breaker->probe != nullptr) return;
  breaker->probe = asker;
}

void Breakers::Leave(Asker asker) { Leave(asker, std::nullopt); }

void Breakers::Leave(Asker asker, const AttentionSpec& spec) {
  if (any_) Leave(asker, ShapeClass(spec));
}

void Breakers::Leave(Asker asker, const std::optional<std::string>& shape) {
  if (!any_) return;
  const std::lock_guard lock(mutex_);
  bool left = false;
  for (Breaker& breaker : breakers_) {
    if (breaker.probe != asker || (shape && *shape != breaker.shape)) continue;
    breaker.probe = nullptr;
    left = true;
  }
  if (left) Changed();
}

void Breakers::Succeeded(AttnBackend backend, const AttentionSpec& spec, Asker asker) {
  if (!any_) return;
  const std::lock_guard lock(mutex_);
  const Breaker* breaker = Find(backend, spec);
  // What began before it opened, and went well, says nothing of what came after.
  if (breaker == nullptr || (breaker->open_until && breaker->probe != asker)) return;
  const BreakerState was = StateOf(*breaker);
  if (was != BreakerState::kClosed) Note(*breaker, was, BreakerState::kClosed);
  breakers_.erase(breakers_.begin() + (breaker - breakers_.data()));
  if (was != BreakerState::kClosed) Changed();
  any_ = !breakers_.empty();
}

void Breakers::Failed(AttnBackend backend, const AttentionSpec& spec, const std::string& error) {
  const std::lock_guard lock(mutex_);
  Breaker* breaker = Find(backend, spec);
  if (breaker == nullptr) breaker = &breakers_.emplace_back(Breaker{backend, ShapeClass(spec)});
  any_ = true;
  breaker->last_error = error;
  breaker->probe = nullptr;
  if (++breaker->failures < kFailures) return;
  const BreakerState was = StateOf(*breaker);
  if (was != BreakerState::kOpen) Note(*breaker, was, BreakerState::kOpen);
  breaker->open_until = clock_() + kOpenFor;
  Changed();
}

void Breakers::Note(const Breaker& breaker, BreakerState from, BreakerState to) {
  changes_.push_back(
      {breaker.backend, breaker.shape, from, to, breaker.failures, breaker.last_error});
}

std::vector<Breakers::Change> Breakers::TakeChanges() {
  const std::lock_guard lock(mutex_);
  return std::exchange(changes_, {});
}

std::vector<BreakerInfo> Breakers::List() const {
  const std::lock_guard lock(mutex_);
  std::vector<BreakerInfo> open;
  for (const Breaker& breaker : breakers_) {
    if (!breaker.open_until) continue;
    open.push_back({"", breaker.backend, breaker.shape, StateOf(breaker), Remaining(breaker),
                    breaker.failures, breaker.last_error});
  }
  return open;
}

uint64_t Breakers::version() const {
  const int64_t due = next_due_ns_.load(std::memory_order_acquire);
  if (due != INT64_MAX && Nanoseconds(clock_()) >= due) {
    const std::lock_guard lock(mutex_);
    Changed();
  }
  return version_.load(std::memory_order_acquire);
}

void Breakers::Changed() const {
  const auto now = clock_();
  int64_t next = INT64_MAX;
  for (const Breaker& breaker : breakers_) {
    if (breaker.open_until && *breaker.open_until > now) {
      next = std::min(next, Nanoseconds(*breaker.open_until));
    }
  }
  next_due_ns_.store(next, std::memory_order_release);
  version_.fetch_add(1, std::memory_order_acq_rel);
}

}  // namespace denoised
