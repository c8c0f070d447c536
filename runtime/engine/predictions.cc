// What the engine tells the queue and the clients about time.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "runtime/engine/engine_impl.h"

namespace denoised {
namespace {

constexpr std::string_view KindName(UnitKind kind) {
  constexpr std::array<std::string_view, 4> kNames = {"encode_prompt", "step", "decode", "done"};
  return kNames[static_cast<size_t>(kind)];
}

// What a client is told to wait for a place: no prediction is better than to the second, and none
// is to be trusted for long. Units take a little more or less than predicted: who comes a tenth
// later finds the place, who comes on time is refused every other time, and waits anew.
std::chrono::milliseconds RetryAfter(double seconds) {
  constexpr double kSure = 1.1, kLeast = 1, kMost = 600;
  return std::chrono::milliseconds(std::lround(1000 * std::clamp(kSure * seconds, kLeast, kMost)));
}

}  // namespace

Unit StepUnitOf(const EngineWork& work) {
  const auto& units = work.estimate->units;
  const auto step = std::find_if(units.begin(), units.end(), [](const PlannedUnits& planned) {
    return planned.unit.kind == UnitKind::kStep;
  });
  return step == units.end() ? Unit{} : step->unit;
}

void CountDown(UnitKind kind, EngineWork* work) {
  if (!work->left) work->left = work->estimate->units;
  for (PlannedUnits& planned : *work->left) {
    if (planned.unit.kind != kind || planned.count == 0) continue;
    --planned.count;
    return;
  }
}

void LeaveSteps(int64_t steps_done, EngineWork* work) {
  work->left.reset();
  for (int64_t i = 0; i < steps_done; ++i) CountDown(UnitKind::kStep, work);
}

PlannerSubject SubjectOf(const TrajectoryWork& work) {
  PlannerSubject subject{work.request.attention, work.request.tenant, work.id,
                         work.parameters.num_inference_steps, work.request.pin_backends};
  subject.rows = PassesInACall(work.parameters.guidance_scale, *work.pipeline);
  subject.order = work.order;
  return subject;
}

PlannerSubject SubjectOf(const CallWork& call) {
  PlannerSubject subject{call.request.attention, "", "call-" + std::to_string(call.number)};
  const std::vector<int64_t>& shape = call.request.latents.shape;
  subject.rows =
      (shape.empty() ? 1 : shape[0]) * PassesInACall(call.request.guidance_scale, *call.pipeline);
  return subject;
}

UnitKey EngineImpl::KeyOf(const EngineWork& work, const Unit& unit) const {
  const bool attends = unit.kind == UnitKind::kStep;
  return {work.pipeline->info().name,
          std::string(KindName(unit.kind)),
          unit.group,
          attends ? std::string(AttnBackendName(work.backend)) : "",
          unit.multiply_adds,
          static_cast<double>(unit.tokens)};
}

double EngineImpl::SecondsOf(const EngineWork& work, std::initializer_list<UnitKind> kinds) const {
  double seconds = 0;
  for (const PlannedUnits& planned : work.units_left()) {
    if (std::find(kinds.begin(), kinds.end(), planned.unit.kind) == kinds.end()) continue;
    seconds += static_cast<double>(planned.count) *
               cost_.Seconds(KeyOf(work, planned.unit), planned.unit.rows);
  }
  return seconds;
}

bool EngineImpl::Known(const EngineWork& work) const {
  return cost_.known(KeyOf(work, StepUnitOf(work)));
}

std::optional<double> EngineImpl::KnownSecondsLeft(const EngineWork& work) const {
  for (const PlannedUnits& planned : work.units_left()) {
    if (planned.count > 0 && !cost_.known(KeyOf(work, planned.unit))) return std::nullopt;
  }
  return SecondsOf(work, {UnitKind::kEncodePrompt, UnitKind::kStep, UnitKind::kDecode});
}

// Its steps, from now on, or all of what is to come: what it can share is the step that it is at or
// goes to. A suspect shares nothing.
WorkProgress EngineImpl::ProgressOf(const EngineWork& work) const {
  WorkProgress progress;
  for (const PlannedUnits& planned : work.units_left()) {
    if (planned.count == 0) continue;
    const double unit = cost_.Seconds(KeyOf(work, planned.unit), planned.unit.rows);
    const double all = static_cast<double>(planned.count) * unit;
    progress.seconds_left += all;
    if (planned.unit.kind == UnitKind::kEncodePrompt) progress.seconds_to_step += all;
    progress.longest_unit = std::max(progress.longest_unit, unit);
  }
  progress.resident = work.begun || !work.is_job();  // a call needs no leave to begin
  const Unit step = StepUnitOf(work);
  const bool steps_left = std::ranges::any_of(work.units_left(), [](const auto& planned) {
    return planned.unit.kind == UnitKind::kStep && planned.count > 0;
  });
  if (!steps_left || step.group.empty() || work.suspect) return progress;
  // Of one model, and not of two that are called so one after the other.
  progress.batch =
      std::to_string(reinterpret_cast<uintptr_t>(work.pipeline.get())) + "\n" + step.group;
  progress.rows = step.rows;
  return progress;
}

Work EngineImpl::Queued(const EngineWork& work) const {
  Work queued;
  static_cast<WorkProgress&>(queued) = ProgressOf(work);
  queued.tenant = work.tenant;
  queued.priority = work.priority;
  queued.arrived = work.arrived;
  queued.deadline = work.deadline;
  return queued;
}

// A place is free when a job that waits begins: when its turn comes and the unit under way has
// ended, or where no more may begin, when one that has begun is done. Jobs that are being stored
// wait from then on: their turn too is known.
std::chrono::milliseconds EngineImpl::TimeToPlace() {
  double turn = std::numeric_limits<double>::infinity();
  if (table_.waiting_jobs() > 0) turn = table_.queue.SecondsToNextBegin();
  for (const auto& [job, work] : entering_) {
    turn = std::min(turn, table_.queue.PredictedBegin(work, clock_()));
  }
  const int64_t most = options_.max_running_jobs;
  const bool waits = most > 0 && table_.running_jobs() >= most;
  return RetryAfter(std::max(turn, waits ? SecondsToFirstEnd() : LongestUnit()));
}

// Of those that have begun the first in the order: the others wait for it. Its files are written
// beside a unit of another one, and only after that may the next one begin.
double EngineImpl::SecondsToFirstEnd() const {
  if (table_.encodes()) return LongestUnit();
  std::optional<int64_t> first;
  double end = 0;
  for (const WorkId number : table_.begun_works()) {
    const int64_t rank = table_.queue.Rank(number);
    if (!table_.InQueue(number)->is_job() || rank > first.value_or(rank)) continue;
    first = rank;
    end = table_.queue.SecondsLeft(number);
  }
  return table_.begun() > 1 ? end + LongestUnit() : end;
}

// What may be under way.
double EngineImpl::LongestUnit() const {
  double longest = 0;
  for (const WorkId number : table_.begun_works()) {
    longest = std::max(longest, table_.queue.LongestUnit(number));
  }
  return longest;
}

std::chrono::milliseconds EngineImpl::TimeToCallPlace() const {
  return RetryAfter(table_.queue.SecondsToTurn(std::string(kCallsTenant)));
}

}  // namespace denoised
