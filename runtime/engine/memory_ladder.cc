#include "runtime/engine/memory_ladder.h"

#include <algorithm>

#include "runtime/engine/memory_budget.h"

namespace denoised {

std::string ShortText(const MemoryPressure& pressure) {
  return "memory is short: requests, results, watchers and connections take " +
         BytesText(pressure.taken_bytes) + " of the " + BytesText(pressure.room_bytes) +
         " that are left to them";
}

// Memory that no promise explains: what it was at the last look, less what was given back since,
// within what this reading allows.
int64_t MemoryLadder::Others(const MemoryReading& reading) const {
  const int64_t least = std::max(reading.counted, reading.grown - reading.promised);
  const int64_t most = std::max(least, reading.grown);
  const int64_t given_back = std::max<int64_t>(0, grown_ - reading.grown);
  return std::clamp(now_.taken_bytes - given_back, least, most);
}

// Where running work was promised nearly everything, or models fill the limit, others have a
// reserve all the same: no larger than what "auto" keeps free.
MemoryPressure MemoryLadder::Judge(const MemoryReading& reading) const {
  MemoryPressure pressure = now_;
  pressure.taken_bytes = Others(reading);
  const int64_t above_models = reading.limit - reading.loaded;
  pressure.room_bytes = std::max(above_models - reading.promised, MemoryReserve(above_models));
  pressure.fraction =
      static_cast<double>(pressure.taken_bytes) / static_cast<double>(pressure.room_bytes);
  return pressure;
}

const MemoryPressure& MemoryLadder::Take(const MemoryReading& reading) {
  now_ = Judge(reading);
  grown_ = reading.grown;
  recent_[looks_++ % recent_.size()] = now_.fraction;
  const double least = *std::min_element(recent_.begin(), recent_.end());
  auto step = static_cast<size_t>(now_.step);
  while (step + 1 < kFrom.size() && least >= kFrom[step + 1]) ++step;
  while (step > 0 && now_.fraction < kUntil[step]) --step;
  now_.step = static_cast<MemoryStep>(step);
  return now_;
}

bool MemoryLadder::WouldClimb(const MemoryPressure& pressure) {
  const auto next = static_cast<size_t>(pressure.step) + 1;
  return next < kFrom.size() && pressure.fraction >= kFrom[next];
}

bool MemoryLadder::Insists(const MemoryPressure& judged) const {
  if (judged.step != MemoryStep::kNone) return judged.fraction >= kUntil[1];
  // All of the looks before but the oldest, which this one replaces.
  size_t asked = judged.fraction >= kFrom[1] ? 1 : 0;
  for (size_t i = 1; i < recent_.size(); ++i) {
    asked += recent_[(looks_ + i) % recent_.size()] >= kFrom[1] ? 1 : 0;
  }
  return asked == recent_.size();
}

int64_t MemoryLadder::Excess(const MemoryPressure& pressure) {
  const double from = pressure.step == MemoryStep::kNone ? kFrom[1] : kUntil[1];
  if (pressure.fraction < from) return 0;
  return pressure.taken_bytes -
         static_cast<int64_t>(kUntil[1] * static_cast<double>(pressure.room_bytes)) + 1;
}

}  // namespace denoised
