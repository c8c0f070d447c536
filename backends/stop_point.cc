#include "backends/stop_point.h"

#include <utility>

namespace denoised {
namespace {

thread_local const ScopedStopCheck* innermost = nullptr;

}  // namespace

ScopedStopCheck::ScopedStopCheck(Why why)
    : why_(std::move(why)), previous_(std::exchange(innermost, this)) {}

ScopedStopCheck::~ScopedStopCheck() { innermost = previous_; }

std::optional<Error> WhyStop() { return innermost == nullptr ? std::nullopt : innermost->why_(); }

void StopPoint() {
  if (auto why = WhyStop()) throw std::move(*why);
}

bool SharedStop::Asked() {
  if (asked_.load(std::memory_order_acquire)) return true;
  auto why = WhyStop();
  if (!why) return false;
  why_ = std::move(why);
  asked_.store(true, std::memory_order_release);
  return true;
}

void SharedStop::ThrowIfAsked() const {
  if (asked_.load(std::memory_order_acquire)) throw *why_;
}

}  // namespace denoised
