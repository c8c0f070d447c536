// What the process must end for, so that the next one goes on: a unit that hangs, and a device that
// CUDA has given up. Jobs go on from their checkpoints; those at fault have crashed once more, and
// nobody else has.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/thread_stacks.h"

namespace denoised {
namespace {

// What the last words may cost a process whose disk may be what hangs.
constexpr std::chrono::seconds kLastWords(2);

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::string Rounded(double seconds) { return std::to_string(std::lround(seconds)); }

void Tell(Logger* logger, LogLevel level, std::string_view event, const WatchedUnit& unit,
          double seconds) {
  logger->Log(level, event,
              {{"unit", unit.kind},
               {"model", unit.model},
               {"backend", unit.backend},
               {"jobs", Joined(unit.jobs)},
               {"others", std::to_string(unit.others)},
               {"seconds", Rounded(seconds)},
               {"expected_seconds", std::to_string(unit.expected_seconds)}});
}

// The one that hangs first.
void TellStacks(Logger* logger, pid_t hung) {
  std::vector<ThreadStack> stacks = StacksOfAllThreads();
  std::ranges::stable_partition(stacks, [&](const auto& stack) { return stack.thread == hung; });
  for (const ThreadStack& stack : stacks) {
    logger->Error("engine.stack", {{"thread", std::to_string(stack.thread)},
                                   {"name", stack.name},
                                   {"hung", stack.thread == hung ? "true" : "false"},
                                   {"frames", Joined(stack.frames)}});
  }
}

std::vector<std::string> JobsOf(const std::vector<WorkPtr>& works) {
  std::vector<std::string> ids;
  for (const WorkPtr& work : works) {
    if (const JobPtr job = JobOf(work)) ids.push_back(job->id);
  }
  return ids;
}

}  // namespace

// Where nobody would start the process anew, it does not end for a unit either.
void EngineImpl::WatchUnits() {
  if (options_.hung_after.count() == 0 || !options_.end_process) return;
  Watchdog::Actions actions;
  actions.hung = [this](const WatchedUnit& unit, double seconds) { TellHung(unit, seconds); };
  actions.give_up = [this](const WatchedUnit& unit, double seconds) { GiveUpOn(unit, seconds); };
  actions.recovered = [this](const WatchedUnit& unit, double s) { TellRecovered(unit, s); };
  watchdog_ = std::make_unique<Watchdog>(options_.hung_after, std::move(actions));
  ticks_ = std::make_unique<Ticker>(watchdog_->tick(), [this] { watchdog_->Tick(); });
}

Watchdog::Scope EngineImpl::Watched(const std::vector<WorkPtr>& works,
                                    const std::vector<Unit>& units) {
  if (watchdog_ == nullptr) return {};
  return {watchdog_.get(), UnitOf(works, units)};
}

// What the engine's thread does between units: no job's.
Watchdog::Scope EngineImpl::WatchedBeside(std::string kind) {
  if (watchdog_ == nullptr) return {};
  WatchedUnit unit;
  unit.kind = std::move(kind);
  unit.thread = static_cast<pid_t>(syscall(SYS_gettid));
  return {watchdog_.get(), std::move(unit)};
}

// Expected of all of them one after the other, which is no less than together. A prompt may read
// the encoder's weights first, so that no other prompt's time says how long it takes.
WatchedUnit EngineImpl::UnitOf(const std::vector<WorkPtr>& works,
                               const std::vector<Unit>& units) const {
  const UnitKey lead = KeyOf(*works.front(), units.front());
  WatchedUnit watched{lead.kind, lead.model, lead.backend, JobsOf(works)};
  watched.others = std::ssize(works) - std::ssize(watched.jobs);
  watched.measured = units.front().kind != UnitKind::kEncodePrompt;
  watched.thread = static_cast<pid_t>(syscall(SYS_gettid));
  for (size_t i = 0; i < works.size(); ++i) {
    const UnitKey key = KeyOf(*works[i], units[i]);
    watched.expected_seconds += cost_.Seconds(key, units[i].rows);
    watched.measured = watched.measured && cost_.ran_here(key);
  }
  return watched;
}

std::optional<std::string> EngineImpl::Hung() const {
  return watchdog_ == nullptr ? std::nullopt : watchdog_->Hung();
}

// Whose fault it is goes first: what follows may hang in turn, or be cut short by whoever sees that
// this server is not ready.
void EngineImpl::TellHung(const WatchedUnit& unit, double seconds) {
  watchman_.Post([this, unit, seconds] {
    store_->NoteBlame(unit.jobs);
    Tell(logger_, LogLevel::kError, "engine.hung", unit, seconds);
    TellStacks(logger_, unit.thread);
  });
}

void EngineImpl::TellRecovered(const WatchedUnit& unit, double seconds) {
  Tell(logger_, LogLevel::kWarning, "engine.recovered", unit, seconds);
  watchman_.Post([this] { store_->NoteBlame(std::nullopt); });
}

// What was learnt is kept as by a stop in order: what hangs is known by it.
void EngineImpl::GiveUpOn(const WatchedUnit& unit, double seconds) {
  const auto said = std::make_shared<std::promise<void>>();
  watchman_.Post([this, unit, seconds, said] {
    Tell(logger_, LogLevel::kError, "engine.given_up", unit, seconds);
    cost_file_.Save();
    said->set_value();
  });
  said->get_future().wait_for(kLastWords);
  options_.end_process(kExitHung);
}

// Where an error says that the device is lost. True: the process has ended or, where a test has it
// live on, serves nothing more.
bool EngineImpl::EndsFor(const std::optional<Error>& error, const std::string& model,
                         const std::vector<std::string>& jobs) {
  if (!error || !IsDeviceLost(*error) || !options_.end_process) return false;
  logger_->Error("device.lost",
                 {{"model", model}, {"jobs", Joined(jobs)}, {"message", error->what()}});
  store_->NoteBlame(jobs);
  cost_file_.Save();
  options_.end_process(kExitDeviceLost);
  const std::lock_guard lock(mutex_);
  return device_lost_ = true;
}

std::optional<Error> EngineImpl::OnDevice(const EngineWork* work,
                                          const std::function<void()>& what) {
  const auto error = Caught(what);
  const bool is_job = work != nullptr && work->is_job();
  EndsFor(error, work == nullptr ? "" : work->pipeline->info().name,
          is_job ? std::vector{static_cast<const JobWork*>(work)->id} : std::vector<std::string>());
  return error;
}

// Likewise of the errors of a unit; the store has its works then as a crash leaves them.
bool EngineImpl::LosesDevice(const std::vector<WorkPtr>& works,
                             const std::vector<std::optional<Error>>& errors) {
  const auto error =
      std::ranges::find_if(errors, [](const auto& each) { return each && IsDeviceLost(*each); });
  if (error == errors.end()) return false;
  // A comparison inside the unit is nobody's.
  const auto whose = shadows_.lost_device() ? std::vector<std::string>() : JobsOf(works);
  if (!EndsFor(*error, works.front()->pipeline->info().name, whose)) return false;
  for (const WorkPtr& work : works) Leave(work, **error);
  return true;
}

void EngineImpl::Leave(const WorkPtr& work, const Error& error) {
  const JobPtr job = JobOf(work);
  if (job == nullptr) return End(work, error);
  job->generation.reset();
  const std::lock_guard lock(mutex_);
  table_.LeaveQueue(job.get());
  table_.Forget(job);
  idle_.notify_all();
}

}  // namespace denoised
