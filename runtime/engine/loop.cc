// The engine thread: one unit of work after the other.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "backends/intra_op.h"
#include "backends/stop_point.h"
#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/refusals.h"
#include "runtime/threads.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook(100), kMemoryPause(20), kDiskPause(1000);

JobStage StageOf(UnitKind kind) {
  return kind == UnitKind::kEncodePrompt ? JobStage::kTextEncode
         : kind == UnitKind::kStep       ? JobStage::kDenoise
                                         : JobStage::kDecode;
}

}  // namespace

void EngineImpl::Loop() {
  ComputeInBackground();
  SetIntraOpThreads(options_.threads);
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      idle_.notify_all();
      const auto next = [this] {
        return stopping_ || session_news_ || follows_ || !asked_.empty() || NextLead() != nullptr ||
               (!device_lost_ && (shadows_.pending() || tuning_.Due(/*idle=*/true)));
      };
      const auto look = LooksAgainAt();
      look ? void(wake_.wait_until(lock, *look, next)) : wake_.wait(lock, next);
      if (stopping_ && asked_.empty() && table_.sessions() == 0) return;
    }
    EndAsked();
    ServeSessions();
    FollowModels();
    const std::vector<WorkPtr> turn = NextTurn();
    if (!turn.empty()) {
      tuning_.MakeWay();
      KeepResidentsWithin(turn);
      RunTurn(turn);
    }
    if (!device_lost_) RunBeside(/*idle=*/turn.empty());
  }
}

// Under mutex_: when something may be due that nobody tells of. Who waits too long is told by a
// thread of its own.
std::optional<SteadyClock::time_point> EngineImpl::LooksAgainAt() const {
  const auto now = SteadyClock::now();
  std::optional<SteadyClock::time_point> at;
  if (table_.sessions() > 0 || tuning_.HasOwn()) at = now + kLook;
  const bool pauses = no_begin_until_ > now;  // also for what comes meanwhile
  return pauses ? std::min(at.value_or(no_begin_until_), no_begin_until_) : at;
}

// Begun work that somebody wants to stop, or that is late.
void EngineImpl::EndAsked() {
  std::vector<WorkPtr> works;
  {
    const std::lock_guard lock(mutex_);
    std::set<WorkId> numbers;  // each once, however often it was asked
    for (WorkId number : std::exchange(asked_, {})) numbers.insert(number);
    for (WorkId number : table_.queue.Expired(clock_())) numbers.insert(number);
    for (WorkId number : numbers) works.push_back(table_.InQueue(number));
  }
  for (const WorkPtr& work : works) {
    if (work == nullptr || !work->begun) continue;
    if (const auto why = WhyStop(*work)) {
      End(work, why);
    } else if (const JobPtr job = JobOf(work); job && job->suspend) {
      PutAside(job);
    }
  }
}

bool EngineImpl::MayBegin() const {
  const int64_t most = options_.max_running_jobs;
  return !ending_ && (most == 0 || table_.running_jobs() < most) &&
         SteadyClock::now() >= no_begin_until_;
}

// Where the next one does not fit beside what has begun, that goes on alone until there is room;
// where nothing has, it is begun, and fails by itself. Beside models that come or go a smaller one
// may begin before it.
WorkPtr EngineImpl::NextLead() {
  const auto now = clock_();
  const auto at = [&](std::optional<WorkId> number) {
    return number ? table_.InQueue(*number) : nullptr;
  };
  if (device_lost_) return nullptr;
  const WorkPtr lead = at(table_.queue.Lead(now, MayBegin()));
  takes_companions_ = true;
  if (lead == nullptr || lead->begun || FitsBesideResidents(*lead)) return lead;
  if (table_.holders() == 0) {
    if (memory_.passing() == 0) return lead;
    const auto fits = [&](WorkId number) { return FitsBesideResidents(*at(number)); };
    const auto smaller = MayBegin() ? table_.queue.FirstOutside(fits) : std::nullopt;
    return smaller ? at(smaller) : lead;
  }
  takes_companions_ = false;
  return at(table_.queue.Lead(now, false));
}

std::vector<WorkPtr> EngineImpl::NextTurn() {
  std::unique_lock lock(mutex_);
  AwaitCompany(&lock);
  if (follows_) return {};
  const WorkPtr lead = NextLead();
  if (lead == nullptr) return {};
  company_.Leave();
  std::vector<WorkPtr> turn = {lead};
  MarkBegun(lead);
  if (!lead->alone) AddCompanions(&turn);
  NotePreemptions(turn);
  return turn;
}

void EngineImpl::MarkBegun(const WorkPtr& work) {
  if (work->begun) return;
  table_.MarkBegun(work.get());
  Refresh(*work);
}

int64_t EngineImpl::MayBegin(int64_t most_at_once) const {
  if (!takes_companions_ || !MayBegin()) return 0;
  const int64_t most = options_.max_running_jobs;
  return most == 0 ? most_at_once : std::min(most_at_once, most - table_.running_jobs());
}

void EngineImpl::AddCompanions(std::vector<WorkPtr>* turn) {
  const EngineWork& lead = *turn->front();
  const UnitKey key = KeyOf(lead, StepUnitOf(lead));
  Room room;
  room.rows = cost_.WorthRows(key, std::min(options_.max_batch_rows, RowsThatFit(lead)));
  room.may_begin = MayBegin(options_.max_batch_rows);
  room.seconds = [&](int64_t rows) { return cost_.Seconds(key, rows); };
  for (WorkId number : table_.queue.Companions(lead.number, room, clock_())) {
    const WorkPtr work = table_.InQueue(number);
    if (number == lead.number || work->alone) continue;
    if (!work->begun && !(FitsBesideResidents(*work) && MayStay(*work))) continue;
    MarkBegun(work);
    turn->push_back(work);
  }
}

// A job that ran in the last turn, has not ended, and is passed over for another job now.
void EngineImpl::NotePreemptions(const std::vector<WorkPtr>& turn) {
  const auto in = [](const std::vector<WorkId>& numbers, WorkId number) {
    return std::count(numbers.begin(), numbers.end(), number) > 0;
  };
  std::vector<WorkId> now;
  for (const WorkPtr& work : turn) now.push_back(work->number);
  const std::vector<WorkId> before = std::exchange(last_turn_, now);
  if (!turn.front()->is_job() || in(before, turn.front()->number)) return;
  for (WorkId number : before) {
    const WorkPtr work = table_.InQueue(number);
    if (work && work->is_job() && !in(now, number)) {
      observer_->OnPreemption(work->pipeline->info().name);
    }
  }
}

// Who is not at a step yet goes first, alone: the others wait no longer than that unit, and the
// step has one more row then.
void EngineImpl::RunTurn(const std::vector<WorkPtr>& turn) {
  turn.front()->pipeline->planner_setting().guard->TakeFailure();  // of nobody here
  std::vector<WorkPtr> works;
  for (const WorkPtr& work : Begin(turn)) {
    if (work->run()->Next().kind != UnitKind::kStep) return RunAlone(work);
    works.push_back(work);
  }
  if (!works.empty() && !LearnColours(works)) RunStep(works);
}

// Gives what has none a run; those that could not begin have ended.
std::vector<WorkPtr> EngineImpl::Begin(const std::vector<WorkPtr>& turn) {
  std::vector<WorkPtr> ready, begun;
  std::vector<JobPtr> starting;
  const bool beside_models = memory_.passing() > 0;  // they may be gone when it is refused
  const auto out = [&](const WorkPtr& work, const Error& error) {
    if (LosesDevice({work}, {error})) return;
    if (!WaitsForRoom(work, error, beside_models)) End(work, error);
  };
  for (const WorkPtr& work : turn) {
    const JobPtr job = work->run() == nullptr ? JobOf(work) : nullptr;
    const auto error = Caught([&] {
      if (work->run() != nullptr) return;
      if (const auto why = WhyStop(*work)) throw *why;
      if (job) MakeReady(job.get());
    });
    // Before the next one is looked at: what it would have held is there for that.
    if (error) {
      out(work, *error);
      continue;
    }
    ready.push_back(work);
    if (job && !job->started) starting.push_back(job);
  }
  std::map<WorkPtr, std::optional<Error>> failed = StartAll(starting);
  for (const WorkPtr& work : ready) {
    auto error = failed[work];
    if (!error && work->run() == nullptr) error = Caught([&] { BeginRun(work); });
    error ? out(work, *error) : begun.push_back(work);
  }
  return begun;
}

void EngineImpl::BeginRun(const WorkPtr& work) {
  if (const JobPtr job = JobOf(work)) return BeginJob(job.get());
  BeginCall(static_cast<CallWork*>(work.get()));
}

// What was accepted does not fail for want of room that others will give back, or of a disk that
// may be emptied: it waits on, and nothing begins for a while.
bool EngineImpl::WaitsForRoom(const WorkPtr& work, const Error& error, bool beside_models) {
  if (!work->is_job() || (error.reason() != "MEMORY" && error.reason() != "DISK")) return false;
  const bool disk = error.reason() == "DISK";
  const std::lock_guard lock(mutex_);
  const bool alone = table_.holders() == 1;
  if (!disk && alone && !(beside_models && WaitsForModels(*work))) return false;  // its own size
  table_.TakeBack(work.get());
  NoteStale(*work);
  Refresh(*work);
  work->planner.reset();
  no_begin_until_ = SteadyClock::now() + (disk ? kDiskPause : kMemoryPause);
  return true;
}

// Under mutex_: whether a model that comes or goes has the room, or had. What only jobs hold that
// were put away it gets as well: they go over.
bool EngineImpl::WaitsForModels(const EngineWork& work) {
  if (!changing_.empty()) return true;
  if (memory_.Lacking(*work.estimate, HeldLater()) > 0) return false;
  if (memory_.passing() > 0) follows_ = away_follow_ = true;
  return true;
}

void EngineImpl::BeginCall(CallWork* call) {
  call->queue_seconds = SecondsSince(call->queued_at);
  call->planner = std::make_unique<AttentionPlanner>(call->pipeline->planner_setting(),
                                                     SubjectOf(*call), observer_);
  call->call = call->pipeline->NewDenoiseRun(call->request, StepUnitOf(*call), call->planner.get(),
                                             observer_);
}

// As the cost model takes it.
double EngineImpl::UnitSecondsSince(SteadyClock::time_point start) {
  return shadows_.UnitRan(std::chrono::duration<double>(unit_clock_() - start).count());
}

void EngineImpl::RunAlone(const WorkPtr& work) {
  const Unit unit = work->run()->Next();
  if (const JobPtr job = JobOf(work)) EnterStage(job.get(), StageOf(unit.kind));
  const auto start = unit_clock_();
  const auto error = Caught([&] {
    const ScopedStopCheck stop([&] { return WhyStop(*work); });
    const Watchdog::Scope watched = Watched({work}, {unit});
    work->run()->Advance();
  });
  const double seconds = UnitSecondsSince(start);
  if (LosesDevice({work}, {error}) || (error && BeginsAnew(work, *error))) return;
  if (!error) cost_.Observe(KeyOf(*work, unit), 1, seconds);
  AfterUnit(work, unit, {seconds, seconds}, error);
}

void EngineImpl::RunStep(const std::vector<WorkPtr>& works) {
  std::vector<Unit> units;
  std::vector<Run*> runs;
  int64_t rows = 0;
  for (const WorkPtr& work : works) {
    runs.push_back(work->run());
    units.push_back(runs.back()->Next());
    rows += units.back().rows;
    if (const JobPtr job = JobOf(work)) EnterStage(job.get(), JobStage::kDenoise);
  }
  const UnitKey key = KeyOf(*works.front(), units.front());
  std::vector<std::optional<Error>> errors;
  const auto start = unit_clock_();
  const auto nobody = Caught([&] {
    const ScopedStopCheck stop([&] { return WhyStopAll(works); });
    const Watchdog::Scope watched = Watched(works, units);
    errors = works.front()->pipeline->Step(runs);
  });
  const double seconds = UnitSecondsSince(start);
  if (nobody) errors = {nobody};
  if (LosesDevice(works, errors)) return;
  if (nobody) return AfterNobody(works, *nobody);
  if (const auto as_one = ShareOf(works, units)) cost_.Observe(key, rows, seconds * *as_one);
  // Before anybody is answered and comes again.
  Company::Callers callers = CallersOf(works, key, rows);
  for (size_t i = 0; i < works.size(); ++i) {
    const double share = static_cast<double>(units[i].rows) / static_cast<double>(rows);
    AfterUnit(works[i], units[i], {seconds, share * seconds}, errors[i]);
  }
  const std::lock_guard lock(mutex_);
  company_.Answered(std::move(callers), seconds, SteadyClock::now());
}

// What a forward of all rows with the lead's backend would take of the time of this one, by what
// rows of each take alone. Nothing where that is not known.
std::optional<double> EngineImpl::ShareOf(const std::vector<WorkPtr>& works,
                                          const std::vector<Unit>& units) const {
  const UnitKey own = KeyOf(*works.front(), units.front());
  double as_own = 0, as_they_are = 0;
  for (size_t i = 0; i < works.size(); ++i) {
    const UnitKey key = KeyOf(*works[i], units[i]);
    if (key.backend != own.backend && !cost_.known(key)) return std::nullopt;
    as_own += cost_.Seconds(own, units[i].rows);
    as_they_are += cost_.Seconds(key, units[i].rows);
  }
  return as_own / as_they_are;
}

// What a backend threw is tried without it. What fails for several at once is tried by each alone:
// it may be the fault of one, or of their number.
void EngineImpl::AfterNobody(const std::vector<WorkPtr>& works, const Error& error) {
  for (const WorkPtr& work : works) work->planner->Undone();
  const auto failure = works.front()->pipeline->planner_setting().guard->TakeFailure();
  if (failure && TryWithout(works, *failure)) return;
  for (const WorkPtr& work : works) {
    if (const auto why = works.size() == 1 ? WhyFailed(*work, error) : WhyStop(*work)) {
      End(work, why);
    } else {
      work->alone = true;
      PutBack(work);
    }
  }
}

void EngineImpl::AfterUnit(const WorkPtr& work, const Unit& unit, const UnitTime& time,
                           const std::optional<Error>& error) {
  work->alone = false;
  {
    const std::lock_guard lock(mutex_);
    table_.queue.Charge(work->tenant, time.share);
  }
  if (error) {
    if (!TriesAgain(work, *error)) End(work, WhyFailed(*work, *error));
    return;
  }
  WentWell(work.get(), unit);
  CountDown(unit.kind, work.get());
  const JobPtr job = JobOf(work);
  if (job) UnitDone(job, unit.kind, time.seconds);
  if (const SessionPtr session = SessionOf(work)) return SessionUnitDone(session, unit, time);
  if (work->run()->Next().kind != UnitKind::kDone) return PutBack(work);
  job ? FinishRun(job) : End(work, std::nullopt);
}

void EngineImpl::Refresh(const EngineWork& work) {
  table_.queue.Update(work.number, ProgressOf(work));
}

void EngineImpl::PutBack(const WorkPtr& work) {
  const std::lock_guard lock(mutex_);
  if (work->planner) work->pinned = work->planner->pinned();  // else it was put away
  Refresh(*work);
}

void EngineImpl::End(const WorkPtr& work, const std::optional<Error>& error) {
  if (const SessionPtr session = SessionOf(work)) return StepsEnded(session, error);
  {
    const std::lock_guard lock(mutex_);
    table_.LeaveQueue(work.get());
  }
  const JobPtr job = JobOf(work);
  if (job == nullptr) return EndCall(std::static_pointer_cast<CallWork>(work), error);
  if (error && GoesOnLater(*job)) return Park(job);
  const Receipt receipt = ReceiptOf(*job);
  job->generation.reset();
  EndJob(job, error, receipt);
  ReturnUnusedMemory();
}

// When a job has given back what it held, so that the gaps of one do not add to the next one's.
void EngineImpl::ReturnUnusedMemory() const {
  const auto artifacts = static_cast<int64_t>(store_->kept_bytes());
  memory_.ReturnUnused(HeldByAll() + artifacts);
}

}  // namespace denoised
