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
using SystemClock = std::chrono::system_clock;

// A job that was running when so many servers died takes no further one down.
constexpr int64_t kMostCrashes = 2;

// How often those who watch jobs that wait may hear where they stand.
constexpr std::chrono::milliseconds kPlacesPeriod(100);

// Why no shadow goes on.
constexpr char kDraining[] = "the server is draining";

// What was asked for, each format once; mp4 where nothing was.
std::vector<ArtifactFormat> DistinctFormats(const std::vector<ArtifactFormat>& asked) {
  if (asked.empty()) return {ArtifactFormat::kMp4};
  std::vector<ArtifactFormat> formats;
  for (ArtifactFormat format : asked) {
    if (std::find(formats.begin(), formats.end(), format) == formats.end()) {
      formats.push_back(format);
    }
  }
  return formats;
}

JobSnapshot FirstSnapshot(const JobWork& job) {
  JobSnapshot snapshot;
  snapshot.id = job.id;
  snapshot.prompt = job.request.prompt;
  snapshot.parameters = job.parameters;
  snapshot.num_steps = job.parameters.num_inference_steps;
  snapshot.priority = job.priority;
  snapshot.tenant = job.tenant;
  snapshot.created_at = SystemClock::now();
  snapshot.sequence = 1;
  return snapshot;
}

QueueOptions QueueOptionsOf(const EngineOptions& options) {
  return {options.policy == EngineOptions::Policy::kFifo ? QueueOptions::Policy::kFifo
                                                         : QueueOptions::Policy::kDeadline,
          options.batching};
}

}  // namespace

EngineImpl::EngineImpl(const EngineOptions& options, std::unique_ptr<SelectionPolicy> policy,
                       LoadedRepository models, std::unique_ptr<JobStore> store, Observer* observer,
                       Logger* logger, Clock clock)
    : options_(options),
      policy_(std::move(policy)),
      source_(std::move(models.source)),
      models_(&models),
      store_(std::move(store)),
      observer_(observer),
      logger_(logger),
      clock_(std::move(clock)),
      audit_(&store_->control(), logger_),
      lease_keeping_(policy_.get(), store_->control(), &audit_, clock_),
      drills_(clock_),
      shadows_(options.shadow_budget, MostShadowBytes(options.max_memory), clock_, observer),
      memory_(options.max_memory, models_.bytes()),
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
  thread_ = std::thread([this] { Loop(); });
  places_.emplace(kPlacesPeriod, [this] { TellPlaces(); });
  deadlines_thread_ = std::thread([this] { WatchDeadlines(); });
}

EngineImpl::~EngineImpl() { Shutdown(); }

// Before any work of its.
void EngineImpl::Guard(const Pipeline& pipeline) {
  CallGuard& guard = *pipeline.planner_setting().guard;
  guard.set_drills(options_.enable_drills ? &drills_ : nullptr);
  guard.set_shadows(shadows_.on() ? &shadows_ : nullptr);
}

// ---- work comes --------------------------------------------------------------------------------

Engine::SubmitResult EngineImpl::Submit(GenerationRequest request) {
  JobPtr job;
  std::optional<JobSnapshot> before;
  const auto error = Caught([&] {
    request.formats = DistinctFormats(request.formats);
    before = store_->MadeBefore(request);  // a retry is answered whatever stands against a new job
    if (!before) job = Admit(std::move(request));
  });
  if (error) return *error;
  auto result = before ? SubmitResult(*std::move(before)) : Accept(job);
  if (auto* snapshot = std::get_if<JobSnapshot>(&result)) AddPlace(snapshot);
  return result;
}

// Late jobs hold no place, and what is refused is not stored.
Engine::SubmitResult EngineImpl::Accept(const JobPtr& job) {
  bool full = false;
  {
    const std::lock_guard lock(mutex_);
    full = Full();
  }
  if (full) ExpireWaiting();
  {
    const std::lock_guard lock(mutex_);
    if (draining_) return Draining();
    if (Full()) return QueueFull();
    ++entering_;
  }
  JobSnapshot snapshot = FirstSnapshot(*job);
  bool added = false, entered = false;
  const auto error =
      Caught([&] { std::tie(snapshot, added) = store_->Add(snapshot, job->request); });
  {
    const std::lock_guard lock(mutex_);
    --entering_;
    if (added) table_.KnowById(job);
    entered = added && !begins_no_more_ && !ending_;
    if (entered) Enter(job);
    if (added && !entered && !store_->durable()) job->closing = true;
  }
  idle_.notify_all();
  if (error) return *error;
  if (!added) return snapshot;  // the one that its key made meanwhile
  wake_.notify_one();
  if (!entered && !store_->durable()) EndJob(job, Cancelled(), {});
  return snapshot;
}

// Jobs that hold a place of the queue: not those that are put aside.
int64_t EngineImpl::Waiting() const { return table_.waiting_jobs() + entering_; }

bool EngineImpl::Full() const { return Waiting() >= options_.max_queued_jobs; }

Error EngineImpl::QueueFull() const {
  return Error(StatusCode::kResourceExhausted,
               "the queue is full (" + std::to_string(Waiting()) + " jobs wait)", "", "QUEUE_FULL")
      .RetryAfter(TimeToPlace());
}

void EngineImpl::Enter(const JobPtr& job) {
  NoteStale(*job);
  table_.KnowById(job);
  table_.Enter(job, Queued(*job));
  if (job->deadline) deadlines_.notify_one();
}

// What an earlier server accepted and did not end.
void EngineImpl::Readmit(AcceptedJob accepted) {
  const auto job = std::make_shared<JobWork>();
  job->id = accepted.snapshot.id;
  job->request = std::move(accepted.request);
  job->parameters = accepted.snapshot.parameters;
  job->attempt = accepted.snapshot.attempt;
  job->told_start = job->attempt > 0;
  job->suspect = accepted.crashes > 0;
  const auto error = Caught([&] {
    if (accepted.snapshot.asked == JobState::kCancelled) throw Cancelled();
    if (job->request.belongs_to_call) throw CallIsGone();
    if (accepted.crashes >= kMostCrashes) {
      throw Error(StatusCode::kAborted,
                  "the server ended unexpectedly in each of its " +
                      std::to_string(accepted.crashes) + " attempts",
                  "", "POISON");
    }
    FillIn(job.get());
    job->queued_at = job->arrived = accepted.queued_at;
    job->left = UnitsLeft(job->estimate, accepted.checkpoint_step);
  });
  if (error) return EndJob(job, error, {});
  const std::lock_guard lock(mutex_);
  if (accepted.snapshot.state == JobState::kSuspended) return table_.KnowById(job);
  Enter(job);
}

void EngineImpl::RequireCallPlace() const {
  if (draining_) throw Draining();
  if (table_.waiting_calls() >= options_.max_queued_denoise_calls) {
    throw Error(StatusCode::kResourceExhausted, "too many Denoise calls wait", "", "QUEUE_FULL")
        .RetryAfter(TimeToCallPlace());
  }
}

void EngineImpl::Denoise(DenoiseRequest request, std::shared_ptr<CancelToken> cancel,
                         std::function<void(DenoiseOutcome)> done) {
  const auto call = std::make_shared<CallWork>();
  call->request = std::move(request);
  call->cancel = std::move(cancel);
  call->done = std::move(done);
  const auto refusal = Caught([&] {
    FillIn(call.get());
    {
      const std::lock_guard lock(mutex_);
      RequireCallPlace();
    }  // a refusal digests nothing
    call->fields = DenoiseFields(call->request);
    const std::lock_guard lock(mutex_);
    RequireCallPlace();
    table_.Enter(call, Queued(*call));
    if (call->deadline) deadlines_.notify_one();
  });
  if (refusal) return call->done(*refusal);
  wake_.notify_one();
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
  return idle_.wait_for(lock, timeout, [this] { return entering_ == 0 && table_.idle(); });
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
  cost_file_.Save();
}

}  // namespace denoised
