// What a job's store and its watchers see of its way through the engine.
#include <algorithm>
#include <utility>

#include "backends/stop_point.h"
#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/receipt.h"
#include "runtime/engine/refusals.h"
#include "runtime/loaders/sha256.h"
#include "runtime/media/artifacts.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;
using SystemClock = std::chrono::system_clock;

// A job that is done sooner makes none.
constexpr std::chrono::seconds kFirstCheckpoint(2);

RunRequest::Decode DecodeOf(const JobWork& job) {
  const std::vector<ArtifactFormat>& formats = job.request.formats;
  if (!WantsFrames(formats)) return RunRequest::Decode::kNothing;
  return Wants(formats, ArtifactFormat::kNpy) ? RunRequest::Decode::kFramesAndValues
                                              : RunRequest::Decode::kFrames;
}

}  // namespace

// Engine thread, as all until EncodeAndStore. From its first beginning on a job or session has the
// automatic choices that it had then.
void EngineImpl::HoldOrder(TrajectoryWork* work) {
  const std::lock_guard lock(mutex_);  // who explains it asks too
  if (!work->order) work->order = std::make_shared<AutomaticOrder>();
}

void EngineImpl::MakeReady(JobWork* job) {
  HoldOrder(job);
  job->redo.reset();
  job->planner = std::make_unique<AttentionPlanner>(job->pipeline->planner_setting(),
                                                    SubjectOf(*job), observer_);
  job->planner->Pin(job->pinned);
  RequireMemoryNow(job);
}

// Jobs that begin together wait for one write to the disk. What each failed with.
std::map<WorkPtr, std::optional<Error>> EngineImpl::StartAll(const std::vector<JobPtr>& jobs) {
  std::map<WorkPtr, std::optional<Error>> errors;
  std::vector<std::string> ids;
  for (const JobPtr& job : jobs) ids.push_back(job->id);
  if (jobs.empty()) return errors;
  const auto started = store_->StartAll(ids);
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (const auto* error = std::get_if<Error>(&started[i])) {
      errors[jobs[i]] = *error;
    } else {
      jobs[i]->attempt = std::get<int64_t>(started[i]);
      jobs[i]->started = true;
    }
  }
  return errors;
}

void EngineImpl::BeginJob(JobWork* job) {
  if (!std::exchange(job->told_start, true)) {
    observer_->OnJobStarted(job->parameters.model, job->priority, SecondsSince(job->queued_at));
  }
  store_->Update(job->id, [&](JobSnapshot& snapshot) {
    if (!snapshot.started_at) snapshot.started_at = SystemClock::now();
  });
  RunRequest request{job->request.prompt,
                     job->id,
                     job->parameters,
                     job->request.latents,
                     job->planner.get(),
                     observer_,
                     job->estimate->decode_bands,
                     DecodeOf(*job),
                     "",
                     job->estimate->releases_text_encoder};
  job->generation = NewRun(job, std::move(request));
  const int64_t done = job->generation->steps_done();
  LeaveSteps(done, job);
  // A run that goes on behind its last step has no other one to tell of it.
  if (done > 0) store_->Update(job->id, [&](JobSnapshot& snapshot) { snapshot.step = done; });
  job->next_checkpoint = SteadyClock::now() + kFirstCheckpoint;
}

// From its checkpoint, where there is one that can be read.
std::unique_ptr<GenerationRun> EngineImpl::NewRun(JobWork* job, RunRequest request) {
  Checkpoint from = GoOnFrom(job);
  if (!from.run.empty()) {
    request.saved = from.run;
    std::unique_ptr<GenerationRun> run;
    const auto error = Caught([&] { run = job->pipeline->NewRun(request); });
    if (!error) {
      job->planner->Restore(std::move(from.entries), std::move(from.notes));
      return run;
    }
    NoteBegunAgain(job, from.step, error->what());
    request.saved.clear();
  }
  return job->pipeline->NewRun(std::move(request));
}

void EngineImpl::EnterStage(JobWork* job, JobStage stage) {
  if (job->stage == stage) return;
  LeaveStage(job);
  job->stage = stage;
  // Of files nothing is predicted.
  const auto eta = stage == JobStage::kEncode ? std::nullopt : KnownSecondsLeft(*job);
  store_->Update(job->id, [&](JobSnapshot& snapshot) {
    snapshot.stage = stage;
    snapshot.eta_seconds = eta;
  });
}

// Its seconds are those of its units: what ran between them is not its own.
void EngineImpl::LeaveStage(JobWork* job) {
  const JobStage stage = std::exchange(job->stage, JobStage::kNone);
  if (stage == JobStage::kNone) return;
  const double seconds = std::exchange(job->stage_seconds, 0);
  observer_->OnStage(job->parameters.model, stage, seconds);
  store_->Update(
      job->id, [&](JobSnapshot& snapshot) { snapshot.stage_seconds.emplace_back(stage, seconds); });
}

void EngineImpl::TellTimeLeft(const JobWork& job) {
  const auto eta = KnownSecondsLeft(job);
  store_->Update(job.id, [eta](JobSnapshot& snapshot) { snapshot.eta_seconds = eta; });
}

void EngineImpl::UnitDone(const JobPtr& job, UnitKind kind, double seconds) {
  job->stage_seconds += seconds;
  if (kind == UnitKind::kDecode) return TellTimeLeft(*job);
  if (kind != UnitKind::kStep) return;
  observer_->OnStep(job->parameters.model, seconds);
  const auto now = SteadyClock::now();
  // From step to step, what others had of the device in between included.
  const double pace =
      job->last_step_at ? std::chrono::duration<double>(now - *job->last_step_at).count() : seconds;
  job->last_step_at = now;
  job->backend = job->planner->Current(AttentionRole::kSelf).value_or(job->backend);
  job->step_pace = job->step_pace > 0 ? 0.7 * job->step_pace + 0.3 * pace : pace;
  const int64_t done = job->generation->steps_done();
  const double left = static_cast<double>(job->parameters.num_inference_steps - done);
  store_->Update(job->id, [&](JobSnapshot& snapshot) {
    snapshot.step = done;
    snapshot.eta_seconds = left * job->step_pace + SecondsOf(*job, {UnitKind::kDecode});
  });
  MaybeCheckpoint(job.get());
  MaybePreview(job);
}

Receipt EngineImpl::ReceiptOf(const JobWork& job) const {
  if (job.planner == nullptr) return {};
  Receipt receipt = StampedReceipt(job, job.parameters.linear);
  receipt.fingerprint = Fingerprint(receipt, job.request, job.parameters);
  return receipt;
}

// The device is done with the job; its files are written beside the next units.
void EngineImpl::FinishRun(const JobPtr& job) {
  {
    const std::lock_guard lock(mutex_);
    table_.ToEncoder(job.get());
  }
  auto video = std::make_shared<DecodedVideo>();
  HostTensor latents;
  const auto error = Caught([&] {
    *video = job->generation->TakeVideo();
    if (Wants(job->request.formats, ArtifactFormat::kSafetensors)) {
      latents = job->generation->Latents();
    }
  });
  if (LosesDevice({job}, {error})) return;
  if (error) return End(job, error);
  job->generation.reset();
  EnterStage(job.get(), JobStage::kEncode);
  encoder_.Post(
      [this, job, video, latents = std::move(latents)] { EncodeAndStore(job, *video, latents); });
}

// Encoder thread.
void EngineImpl::EncodeAndStore(const JobPtr& job, const DecodedVideo& video,
                                const HostTensor& latents) {
  const auto start = SteadyClock::now();
  const auto error = Caught([&] {
    const ScopedStopCheck stop([&] { return WhyStop(*job); });
    std::vector<std::pair<ArtifactInfo, std::string>> files;
    for (ArtifactFormat format : job->request.formats) {
      StopPoint();
      std::string bytes = EncodeArtifact(format, video, latents);
      const ArtifactInfo info{format, "video." + std::string(ArtifactFormatName(format)),
                              bytes.size(), Sha256Hex(bytes)};
      files.emplace_back(info, std::move(bytes));
    }
    CloseToCancels(job.get());
    for (auto& [info, bytes] : files) {
      store_->PutArtifact(job->id, info, std::move(bytes));
      store_->Update(job->id,
                     [&info = info](JobSnapshot& snapshot) { snapshot.artifacts.push_back(info); });
    }
  });
  job->stage_seconds = SecondsSince(start);
  if (error && GoesOnLater(*job)) return Park(job);
  if (!error) LeaveStage(job.get());
  EndJob(job, error, ReceiptOf(*job));
  ReturnUnusedMemory();
}

// A cancel that was accepted is kept: from here on the job can only succeed, and is told so.
void EngineImpl::CloseToCancels(JobWork* job) {
  const std::lock_guard lock(mutex_);
  if (job->cancel->cancelled) throw Cancelled();
  job->closing = true;
}

// Any thread; the job has left the queue.
void EngineImpl::EndJob(const JobPtr& job, const std::optional<Error>& error, Receipt receipt) {
  const JobState outcome = !error                                    ? JobState::kSucceeded
                           : error->code() == StatusCode::kCancelled ? JobState::kCancelled
                                                                     : JobState::kFailed;
  store_->Update(job->id, [&](JobSnapshot& snapshot) {
    snapshot.state = outcome;
    snapshot.finished_at = SystemClock::now();
    snapshot.eta_seconds.reset();
    snapshot.receipt = std::move(receipt);
    if (!error) return;
    snapshot.error = ToJobError(*error);
    snapshot.artifacts.clear();  // the store forgets those that were kept
  });
  observer_->OnJobFinished(job->parameters.model, outcome);
  LogEnd(*job, outcome, error);
  {
    const std::lock_guard lock(mutex_);
    table_.Forget(job);
  }
  wake_.notify_one();  // there may be room for another one
  idle_.notify_all();
  cost_file_.JobEnded();
}

void EngineImpl::LogEnd(const JobWork& job, JobState outcome, const std::optional<Error>& error) {
  if (!error) return logger_->Info("job_ended", {{"job", job.id}, {"state", "SUCCEEDED"}});
  logger_->Warning("job_ended", {{"job", job.id},
                                 {"state", std::string(JobStateName(outcome))},
                                 {"reason", error->reason()},
                                 {"message", error->what()}});
}

// Any thread; the call has left the queue.
void EngineImpl::EndCall(const CallPtr& call, const std::optional<Error>& error) {
  DenoiseResult result;
  const auto failed = error ? error : OnDevice(call.get(), [&] {
    result = call->call->TakeResult();
    result.receipt = StampedReceipt(*call, LinearOf(call->request, *call->pipeline));
    result.receipt.fingerprint = Fingerprint(result.receipt, call->fields);
    result.queue_seconds = call->queue_seconds;
  });
  call->call.reset();
  failed ? call->done(*failed) : call->done(std::move(result));
  {
    const std::lock_guard lock(mutex_);
    table_.CallAnswered();
  }
  wake_.notify_one();  // there may be room for another one
  idle_.notify_all();
}

}  // namespace denoised
