// Memory that no estimate accounts for: how much it is, and that no new work comes while it is too
// much. The ticker's thread, or as engine_impl.h says.
#include <algorithm>

#include "runtime/engine/engine_impl.h"
#include "runtime/engine/refusals.h"

namespace denoised {
namespace {

// So many looks apart the heap is trimmed where no step is about to be taken.
constexpr int kSeldom = 40;

std::string Percent(double fraction) {
  return std::to_string(static_cast<int64_t>(100 * fraction)) + " %";
}

std::string_view StepName(MemoryStep step) {
  constexpr std::array<std::string_view, 4> kNames = {"none", "no_new_work", "shed_watchers",
                                                      "refuse_connections"};
  return kNames[static_cast<size_t>(step)];
}

}  // namespace

MemoryPressure EngineImpl::Pressure() const {
  const std::lock_guard lock(mutex_);
  return ladder_.now();
}

void EngineImpl::RequireNoPressure() {
  if (ladder_.now().step == MemoryStep::kNone) return;
  ladder_.CountRefusal();
  throw MemoryIsShort(ladder_.now());
}

std::optional<MemoryReading> EngineImpl::ReadMemory() const {
  int64_t counted = ResultsThatStay(), promised = 0;
  {
    const std::lock_guard lock(mutex_);
    counted += table_.request_bytes();
    promised = std::max<int64_t>(0, models_.MadeBytes()) + HeldForShadows() +
               table_.resident_bytes() + table_.largest_excess();
  }
  return memory_.Read(promised, counted);
}

// Results that may be forgotten go before anybody is sent away.
void EngineImpl::ForgetForOthers(const MemoryPressure& pressure) {
  const int64_t excess = MemoryLadder::Excess(pressure);
  if (excess > 0 && store_->forgettable_bytes() > 0) {
    store_->MakeRoom(static_cast<size_t>(excess));
  }
}

// Where a step is about to be taken every other look is of a heap that keeps nothing for later: the
// ladder climbs by several in a row, so never by memory that nobody uses. Where it only stands
// there this is done now and then: whoever computes pays for it.
bool EngineImpl::IsTimeToTrim(const MemoryPressure& now) {
  const bool often = MemoryLadder::WouldClimb(now);
  if (now.fraction < MemoryLadder::kUntil[1] || ++looks_since_trim_ < (often ? 2 : kSeldom)) {
    return false;
  }
  looks_since_trim_ = 0;
  return true;
}

void EngineImpl::LookAtMemory() {
  auto reading = ReadMemory();
  if (!reading) return;
  MemoryPressure before, now;
  {
    const std::lock_guard lock(mutex_);
    before = ladder_.now();
    now = ladder_.Judge(*reading);
  }
  if (IsTimeToTrim(now)) {
    memory_.ReturnAllUnused();
    reading = ReadMemory();
    if (!reading) return;
  }
  bool insists = false;
  {
    const std::lock_guard lock(mutex_);
    now = ladder_.Judge(*reading);
    insists = ladder_.Insists(now);
  }
  if (insists) {
    ForgetForOthers(now);
    reading = ReadMemory();
    if (!reading) return;
  }
  {
    const std::lock_guard lock(mutex_);
    now = ladder_.Take(*reading);
  }
  if (now.step == before.step) return;
  logger_->Warning("memory.step", {{"step", std::string(StepName(now.step))},
                                   {"pressure", Percent(now.fraction)},
                                   {"taken", BytesText(now.taken_bytes)},
                                   {"room", BytesText(now.room_bytes)}});
}

}  // namespace denoised
