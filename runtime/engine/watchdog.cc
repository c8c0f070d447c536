#include "runtime/engine/watchdog.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace denoised {
namespace {

using std::chrono::milliseconds;

constexpr double kTimesExpected = 10, kTimesUnmeasured = 30;

double SecondsOf(milliseconds time) { return std::chrono::duration<double>(time).count(); }

milliseconds TickOf(milliseconds hung_after) {
  return std::clamp(hung_after / 8, milliseconds(10), milliseconds(1000));
}

}  // namespace

Watchdog::Watchdog(milliseconds hung_after, Actions actions)
    : hung_after_(hung_after), tick_(TickOf(hung_after)), actions_(std::move(actions)) {}

Watchdog::Scope::Scope(Watchdog* watchdog, WatchedUnit unit) : watchdog_(watchdog) {
  watchdog_->Begin(std::move(unit));
}

Watchdog::Scope::~Scope() {
  if (watchdog_ != nullptr) watchdog_->End();
}

void Watchdog::Begin(WatchedUnit unit) {
  auto begun = std::make_shared<const WatchedUnit>(std::move(unit));
  const std::lock_guard lock(mutex_);
  unit_ = std::move(begun);
  seconds_ = 0;
  hung_ = given_up_ = false;
}

void Watchdog::End() {
  std::unique_lock lock(mutex_);
  const auto unit = std::exchange(unit_, nullptr);
  if (!std::exchange(hung_, false)) return;
  lock.unlock();
  actions_.recovered(*unit, seconds_);  // nobody else writes them between two units
}

double Watchdog::SecondsAllowed() const {
  const double seconds = std::max(kTimesExpected * unit_->expected_seconds, SecondsOf(hung_after_));
  return unit_->measured ? seconds : kTimesUnmeasured * seconds;
}

void Watchdog::Tick() {
  std::unique_lock lock(mutex_);
  if (unit_ == nullptr) return;
  seconds_ += SecondsOf(tick_);
  const double over = seconds_ - SecondsAllowed();
  const bool now_hung = over >= 0 && !std::exchange(hung_, hung_ || over >= 0);
  const bool gives_up = over >= SecondsOf(hung_after_) && !given_up_;
  given_up_ = given_up_ || gives_up;
  const auto unit = unit_;
  const double seconds = seconds_;
  lock.unlock();
  if (now_hung) actions_.hung(*unit, seconds);
  if (gives_up) actions_.give_up(*unit, seconds);
}

std::optional<std::string> Watchdog::Hung() const {
  const std::lock_guard lock(mutex_);
  if (!hung_) return std::nullopt;
  return unit_->kind + " of " + unit_->model +
         (unit_->backend.empty() ? "" : " (" + unit_->backend + ")") + " has run for " +
         std::to_string(std::lround(seconds_)) + " s";
}

}  // namespace denoised
