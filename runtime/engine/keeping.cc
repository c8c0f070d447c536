// Jobs that are put aside, put away for the next start, or kept for the case of a crash.
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/receipt.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

}  // namespace

// All that the next steps' bits depend on beside the job itself.
std::string EngineImpl::IdentityOf(const JobWork& job) const {
  Receipt receipt;
  StampReceipt(job.pipeline->info(), job.pipeline->planner_setting(), job.parameters.linear,
               &receipt);
  std::string text;
  const auto add = [&](const std::string& name, const std::string& value) {
    text += name + "=" + value + "\n";
  };
  add("model", receipt.model_digest);
  add("version", receipt.version);
  add("torch", receipt.torch_version);
  add("device", receipt.device);
  add("dtype", receipt.dtype);
  add("kernels", receipt.kernels);
  add("linear", receipt.linear);
  PlannerSubject subject = SubjectOf(job);
  if (job.planner) subject.pinned = job.planner->pinned();
  for (const AttentionSpec& spec : job.pipeline->DenoiseSpecs(job.parameters)) {
    std::string backends;
    for (const Wish& granted : ChoicesNow(job.pipeline->planner_setting(), subject, spec)) {
      backends += (backends.empty() ? "" : " ") + std::string(AttnBackendName(granted.backend)) +
                  granted.parameters;
    }
    add("backend of " + std::string(AttentionRoleName(spec.role)), backends);
  }
  return text;
}

Checkpoint EngineImpl::CheckpointOf(const JobWork& job) const {
  return {job.generation->steps_done(), IdentityOf(job),        job.planner->Entries(),
          job.planner->Notes(),         job.generation->Save(), job.planner->pinned()};
}

void EngineImpl::NoteBegunAgain(JobWork* job, int64_t step, const std::string& why) {
  observer_->OnJobResumed(job->parameters.model, false);
  job->planner->AddNote("begun again from step 0, not from step " + std::to_string(step) + ": " +
                        why);
}

// What to go on from; without a run in it where there is nothing, or where something that the bits
// depend on is no longer the same: then the job begins again, and its receipt says so.
Checkpoint EngineImpl::GoOnFrom(JobWork* job) {
  Checkpoint from = std::exchange(job->checkpoint, {});
  if (from.run.empty()) {
    const auto kept = store_->ReadCheckpoint(job->id);
    if (!kept) return {};
    if (const auto error = Caught([&] { from = Checkpoint::Parse(kept->second); })) {
      NoteBegunAgain(job, kept->first, error->what());
      return {};
    }
  }
  job->planner->Pin(from.pinned);
  const std::string differs = WhatDiffers(from.identity, IdentityOf(*job));
  if (!differs.empty()) {
    NoteBegunAgain(job, from.step, differs);
    return {};
  }
  observer_->OnJobResumed(job->parameters.model, true);
  return from;
}

// A job that is put aside holds no device memory: what it has reached is its checkpoint. It goes on
// where that cannot be kept.
void EngineImpl::PutAside(const JobPtr& job) {
  const std::lock_guard one_at_a_time(suspend_mutex_);
  if (!job->suspend) return;  // goes on after all
  const auto error = Caught([&] {
    Checkpoint reached = CheckpointOf(*job);
    if (store_->durable()) {
      store_->Checkpoint(job->id, reached.step, reached.Serialise());
    } else {
      job->checkpoint = std::move(reached);
    }
    TellSuspended(job->id);
  });
  if (error) {
    job->suspend = false;
    logger_->Warning("job_not_suspended", {{"job", job->id}, {"message", error->what()}});
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    if (job->cancel->cancelled) return;  // it is in asked_ by now
    table_.PutAside(job.get());
    positions_moved_ = true;
  }
  LeaveStage(job.get());
  job->left = UnitsLeft(job->estimate, job->generation->steps_done());
  job->last_step_at.reset();
  job->step_pace = 0;
  job->generation.reset();
  job->planner.reset();
  idle_.notify_all();
}

void EngineImpl::TellSuspended(const std::string& id) {
  store_->Update(id, [](JobSnapshot& snapshot) {
    snapshot.state = JobState::kSuspended;
    snapshot.queue_position = 0;
    snapshot.eta_seconds.reset();
    snapshot.starts_in_seconds.reset();
  });
}

// The server ends: the next one goes on from here.
void EngineImpl::Park(const JobPtr& job) {
  const auto error = Caught([&] {
    if (job->generation) {
      const Checkpoint reached = CheckpointOf(*job);
      store_->Checkpoint(job->id, reached.step, reached.Serialise());
    }
    store_->Interrupt(job->id);
    if (job->suspend) TellSuspended(job->id);
  });
  if (error) logger_->Warning("job_not_parked", {{"job", job->id}, {"message", error->what()}});
  job->generation.reset();
  const std::lock_guard lock(mutex_);
  table_.Forget(job);
  idle_.notify_all();
}

bool EngineImpl::CheckpointIsDue(const JobWork& job) const {
  const int64_t every = options_.checkpoint_every, done = job.generation->steps_done();
  if (!store_->durable() || every == 0) return false;
  return every > 0 ? done % every == 0 : SteadyClock::now() >= job.next_checkpoint;
}

// Paced, so that what they cost stays well below a hundredth of the steps.
void EngineImpl::MaybeCheckpoint(JobWork* job) {
  constexpr int64_t kSpacing = 300;
  constexpr std::chrono::seconds kLeast(2);
  if (!CheckpointIsDue(*job)) return;
  const auto start = SteadyClock::now();
  const auto error = Caught([&] {
    const Checkpoint reached = CheckpointOf(*job);
    store_->Checkpoint(job->id, reached.step, reached.Serialise());
  });
  if (error) logger_->Warning("checkpoint_failed", {{"job", job->id}, {"message", error->what()}});
  const auto end = SteadyClock::now();
  job->next_checkpoint = end + std::max<SteadyClock::duration>(kLeast, kSpacing * (end - start));
  observer_->OnCheckpoint(job->parameters.model,
                          std::chrono::duration<double>(end - start).count());
}

}  // namespace denoised
