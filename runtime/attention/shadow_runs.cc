// Which calls shadows and budgets compare, and when: engine thread.
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "backends/stop_point.h"
#include "runtime/attention/shadow_calls.h"
#include "runtime/attention/shadows.h"
#include "runtime/caught.h"

namespace denoised {
namespace {

using std::chrono::steady_clock;

double SecondsSince(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

}  // namespace

void Shadows::After(const AttentionSlot& slot, int layer, const AttentionInputs& inputs,
                    const at::Tensor& out, double call_seconds) {
  for (const WatchedRows& rows : slot.watched) {
    for (const Comparison& comparison : rows.calls->comparisons) {
      if (!comparison.layers.Has(layer)) continue;
      ++paces_[comparison.id].calls;
      if (!time_.Affords(0)) continue;
      auto call = std::make_unique<ShadowCall>(
          ShadowCall{rows.calls, &comparison, RowsOf(inputs, rows.first, rows.count),
                     rows.count < 0 ? out : out.narrow(0, rows.first, rows.count), slot.id});
      const bool at_once = comparison.budget || call->Bytes() > most_bytes_;
      if (!Draws(*call, at_once, call_seconds)) continue;
      at_once ? CompareNow(*call) : Keep(std::move(call));
    }
  }
}

// So often that what is allowed is spread over all calls of a unit, which are about as many as the
// last one had.
bool Shadows::Draws(const ShadowCall& call, bool at_once, double call_seconds) {
  const Pace& pace = paces_[call.comparison->id];
  double allowed = 0;
  if (at_once) {
    // Nobody knows yet what the other takes: perhaps twice as much as what is faster.
    const double each = pace.seconds_a_pair > 0 ? SecondsOf(call) : 2 * call_seconds;
    if (!time_.Affords(each)) return false;
    allowed = time_.credit() / each;
  } else {
    const std::lock_guard lock(mutex_);
    allowed = static_cast<double>(kMostKept - queue_.size());
  }
  const auto expected = static_cast<double>(std::max<int64_t>(1, pace.calls_before));
  const double drawn = std::uniform_real_distribution<>(0, 1)(random_);
  return drawn < std::min(call.comparison->share, allowed / expected);
}

// 0 where nobody knows.
double Shadows::SecondsOf(const ShadowCall& call) const {
  const auto pace = paces_.find(call.comparison->id);
  return pace == paces_.end() ? 0 : pace->second.seconds_a_pair * PairsOf(call.inputs);
}

// Copies a call for later.
void Shadows::Keep(std::unique_ptr<ShadowCall> call) {
  const int64_t bytes = call->Bytes();
  if (!time_.Affords(copy_rate_ * static_cast<double>(bytes))) return;
  {
    const std::lock_guard lock(mutex_);
    int64_t kept = 0;
    for (const auto& other : queue_) kept += other->Bytes();
    if (queue_.size() >= kMostKept || kept + bytes > most_bytes_) return;
  }
  const at::Device device = call->out.device();
  WaitFor(device);
  const auto start = steady_clock::now();
  const auto failed = Caught([&] {  // there may be no memory
    call->Keep();
    WaitFor(device);
  });
  const double seconds = SecondsSince(start);
  copy_rate_ = seconds / static_cast<double>(bytes);
  HeldUp(seconds, /*inside_unit=*/true);
  RethrowLost(failed);
  if (failed) return;
  const std::lock_guard lock(mutex_);
  if (IsLive(call->comparison->id)) queue_.push_back(std::move(call));
}

void Shadows::RethrowLost(const std::optional<Error>& error) {
  if (error && IsDeviceLost(*error)) lost_device_ = true;
  RethrowDeviceLost(error);
}

// A budget's, and what is too large to be kept.
void Shadows::CompareNow(const ShadowCall& call) {
  if (static_cast<int64_t>(call.out.nbytes()) > most_bytes_) return;
  double seconds = 0;
  Take(call, time_.credit(), &seconds);
  HeldUp(seconds, /*inside_unit=*/true);
}

// Runs a comparison, and takes down what it found. It ends without a result at the first stop point
// after `most_seconds`; without a limit, where the one around it says so.
Shadows::Outcome Shadows::Take(const ShadowCall& call, std::optional<double> most_seconds,
                               double* seconds) {
  const c10::InferenceMode inference;
  WaitFor(call.out.device());
  const auto start = steady_clock::now();
  bool too_long = false;
  const auto error = Caught([&] {
    std::optional<ScopedStopCheck> limit;
    if (most_seconds) {
      limit.emplace([&]() -> std::optional<Error> {
        too_long = SecondsSince(start) > *most_seconds;
        if (!too_long) return std::nullopt;
        return Error(StatusCode::kCancelled, "a comparison takes longer than it may");
      });
    }
    Record(call, Compare(call));
  });
  *seconds = SecondsSince(start);
  RethrowLost(error);
  const Outcome outcome = !error      ? Outcome::kDone
                          : too_long  ? Outcome::kTooLong
                          : WhyStop() ? Outcome::kStopped
                                      : Outcome::kFailed;
  if (outcome == Outcome::kFailed) NoteFailure(call, error->what());
  Learn(call, outcome, *seconds);
  return outcome;
}

// What such a call takes; at least twice as long where it was cut off.
void Shadows::Learn(const ShadowCall& call, Outcome outcome, double seconds) {
  if (outcome == Outcome::kStopped) return;
  const auto pace = paces_.find(call.comparison->id);
  if (pace == paces_.end()) return;
  pace->second.seconds_a_pair =
      (outcome == Outcome::kTooLong ? 2 : 1) * seconds / std::max(1.0, PairsOf(call.inputs));
}

bool Shadows::pending() const {
  const std::lock_guard lock(mutex_);
  return !queue_.empty();
}

// The oldest call that waits and that there is time for. Budgets go first: where there are any, a
// shadow has quiet times alone.
std::unique_ptr<ShadowCall> Shadows::Next(bool idle) {
  any();  // calls of what has ended are gone
  const std::lock_guard lock(mutex_);
  if (!idle && judged_) return nullptr;
  const auto next = std::ranges::find_if(
      queue_, [&](const auto& call) { return idle || time_.Affords(SecondsOf(*call)); });
  if (next == queue_.end()) return nullptr;
  std::unique_ptr<ShadowCall> call = std::move(*next);
  queue_.erase(next);
  return call;
}

bool Shadows::RunOne(bool idle) {
  std::unique_ptr<ShadowCall> call = Next(idle);
  if (call == nullptr) return false;
  double seconds = 0;
  const auto most = idle ? std::nullopt : std::optional(time_.credit());
  const Outcome outcome = Take(*call, most, &seconds);
  if (!idle) HeldUp(seconds, /*inside_unit=*/false);
  if (outcome != Outcome::kStopped && outcome != Outcome::kTooLong) return true;
  const std::lock_guard lock(mutex_);  // it begins again when there is more time
  if (IsLive(call->comparison->id)) queue_.push_front(std::move(call));
  return false;
}

double Shadows::UnitRan(double seconds) {
  judged_ = std::exchange(judges_, false);
  for (auto& [id, pace] : paces_) {
    if (pace.calls > 0) pace.calls_before = std::exchange(pace.calls, 0);
  }
  return time_.Earn(seconds);
}

void Shadows::HeldUp(double seconds, bool inside_unit) {
  time_.Spend(seconds, inside_unit);
  observer_->OnShadowSeconds(seconds);
}

}  // namespace denoised
