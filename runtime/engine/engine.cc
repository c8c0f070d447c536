// The callers' side of the engine: what is accepted and asked, and its end. Any thread.
#include "runtime/engine.h"

#include <algorithm>
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/receipt.h"
#include "runtime/engine/refusals.h"
#include "runtime/threads.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

// How often those who watch jobs that wait may hear where they stand.
constexpr std::chrono::milliseconds kPlacesPeriod(100);
// How often memory is looked at.
constexpr std::chrono::milliseconds kMemoryPeriod(250);

// Why no shadow goes on.
constexpr char kDraining[] = "the server is draining";

QueueOptions QueueOptionsOf(const EngineOptions& options) {
  return {options.policy == EngineOptions::Policy::kFifo ? QueueOptions::Policy::kFifo
                                                         : QueueOptions::Policy::kDeadline,
          options.batching};
}

}  // namespace

EngineImpl::EngineImpl(const EngineOptions& options, std::unique_ptr<SelectionPolicy> policy,
                       LoadedRepository models, std::unique_ptr<JobStore> store, Observer* observer,
                       Logger* logger, Clock clock, Clock unit_clock)
    : options_(options),
      policy_(std::move(policy)),
      source_(std::move(models.source)),
      models_(&models),
      store_(std::move(store)),
      observer_(observer),
      logger_(logger),
      clock_(std::move(clock)),
      unit_clock_(std::move(unit_clock)),
      audit_(&store_->control(), logger_),
      lease_keeping_(policy_.get(), store_->control(), &audit_, clock_),
      drills_(clock_),
      shadows_(options.shadow_budget, MostShadowBytes(options.max_memory), clock_, observer),
      memory_(options.max_memory, models_.bytes(), options.unreclaimable_bytes),
      cost_file_(options.state_dir, &cost_, logger),
      table_(QueueOptionsOf(options)),
      tuning_(models_, {options.auto_error, options.tune_when_idle},
              {&store_->control(), &audit_, logger_, [this] { Wake(); },
               [this] { return BytesAtHand(); }}) {
  for (const PipelinePtr& pipeline : models_.All()) Guard(*pipeline);
  EndUnjudged();
  for (AcceptedJob& accepted : store_->Recover()) Readmit(std::move(accepted));
  encoder_.Post(ComputeInBackground);
  changes_.Post(ComputeInBackground);
  WatchUnits();
  if (options_.before_work) options_.before_work([this] { store_->NoteStop(); });
  thread_ = std::thread([this] { Loop(); });
  places_.emplace(kPlacesPeriod, [this] { TellPlaces(); });
  memory_looks_.emplace(kMemoryPeriod, [this] { LookAtMemory(); });
  deadlines_thread_ = std::thread([this] { WatchDeadlines(); });
}

EngineImpl::~EngineImpl() {
  Shutdown();
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return unanswered_ == 0; });
}

// Before any work of its.
void EngineImpl::Guard(const Pipeline& pipeline) {
  CallGuard& guard = *pipeline.planner_setting().guard;
  guard.set_drills(options_.enable_drills ? &drills_ : nullptr);
  guard.set_shadows(shadows_.on() ? &shadows_ : nullptr);
}

void EngineImpl::Drill(const DrillRequest& request) {
  if (!options_.enable_drills) {
    throw Error(StatusCode::kFailedPrecondition,
                "drills are off: this server was started without --enable_drills", "",
                "DRILLS_OFF");
  }
  drills_.Begin(request);
}

// ---- counts and ends ---------------------------------------------------------------------------

int64_t EngineImpl::queue_depth() const {
  const std::lock_guard lock(mutex_);
  return table_.waiting_jobs();
}

int64_t EngineImpl::running_jobs() const {
  const std::lock_guard lock(mutex_);
  return table_.running_jobs();
}

void EngineImpl::Drain() {
  tuning_.Stop();
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    session_news_ = true;
  }
  shadows_.StopAll(kDraining);
  wake_.notify_one();
}

bool EngineImpl::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_;
}

void EngineImpl::BeginNoMore() {
  std::vector<std::string> waiting, away;
  std::vector<WorkPtr> ended;
  shadows_.StopAll(kDraining);
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    if (!store_->durable()) return;
    begins_no_more_ = true;
    for (const WorkPtr& work : table_.All()) {
      const JobPtr job = JobOf(work);
      if (job == nullptr || job->begun) continue;
      if (!IsKept(*job)) {
        Close(job);
        ended.push_back(job);
        continue;
      }
      table_.LeaveQueue(job.get());
      waiting.push_back(job->id);
      if (job->started) away.push_back(job->id);
    }
    for (const JobPtr& job : table_.Aside()) waiting.push_back(job->id);
  }
  idle_.notify_all();
  InterruptAll(away);
  for (const WorkPtr& work : ended) EndWaiting(work, Draining());
  // Wakes those who watch.
  for (const std::string& id : waiting) store_->Touch(id);
}

bool EngineImpl::leaves_waiting() const {
  const std::lock_guard lock(mutex_);
  return begins_no_more_;
}

bool EngineImpl::WaitIdle(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, timeout, [this] { return entering_.empty() && table_.idle(); });
}

void EngineImpl::Stop() {
  tuning_.Stop();
  std::vector<WorkPtr> waiting;
  std::vector<std::string> away;
  shadows_.StopAll(kDraining);
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    begins_no_more_ = store_->durable();
    ending_ = true;
    session_news_ = true;
    for (const WorkPtr& work : table_.All()) {
      if (work->begun) {
        asked_.push_back(work->number);
      } else if (IsKept(*work)) {
        table_.LeaveQueue(work.get());
        if (JobOf(work)->started) away.push_back(JobOf(work)->id);
      } else {
        Close(work);
        waiting.push_back(work);
      }
    }
    for (const JobPtr& job : table_.Aside()) {
      if (IsKept(*job) || std::exchange(job->closing, true)) continue;
      waiting.push_back(job);
    }
  }
  wake_.notify_one();
  InterruptAll(away);
  for (const WorkPtr& work : waiting) {
    EndWaiting(work, work->is_job() ? Cancelled() : Draining());
  }
  idle_.notify_all();
}

// So that the engine's thread looks again; it may be about to wait.
void EngineImpl::Wake() {
  { const std::lock_guard lock(mutex_); }
  wake_.notify_one();
}

void EngineImpl::Shutdown() {
  Stop();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  deadlines_.notify_all();
  const std::lock_guard join(join_mutex_);
  if (!thread_.joinable()) return;
  changes_.Join();
  deadlines_thread_.join();
  thread_.join();
  encoder_.Join();
  places_.reset();  // whom it tells may go now
  memory_looks_.reset();
  cost_file_.Save();
}

}  // namespace denoised
