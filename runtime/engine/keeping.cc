// Jobs that are put aside, put away for the next start, or kept for the case of a crash.
#include <algorithm>
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/receipt.h"
#include "runtime/engine/refusals.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

}  // namespace

// All that the next steps' bits depend on beside the job itself.
std::string EngineImpl::IdentityOf(const JobWork& job) const {
  Receipt receipt;
  StampReceipt(job, job.parameters.linear, &receipt);
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
  return {job.generation->steps_done(),
          IdentityOf(job),
          job.planner->Entries(),
          job.planner->Notes(),
          job.generation->Save(),
          job.planner->pinned(),
          job.order->Save()};
}

void EngineImpl::NoteBegunAgain(JobWork* job, int64_t step, const std::string& why) {
  observer_->OnJobResumed(job->parameters.model, false);
  job->planner->AddNote("begun again from step 0, not from step " + std::to_string(step) + ": " +
                        why);
}

// What to go on from; without a run in it where there is nothing, or where something that the bits
// depend on is no longer the same: then the job begins again, and its receipt says so.
Checkpoint EngineImpl::GoOnFrom(JobWork* job) {
  if (const auto anew = std::exchange(job->begins_anew, std::nullopt)) {
    NoteBegunAgain(job, anew->first, anew->second);
    return {};
  }
  Checkpoint from;
  if (const auto reached = std::exchange(job->checkpoint, nullptr)) from = std::move(*reached);
  if (from.run.empty()) {
    const auto kept = store_->ReadCheckpoint(job->id);
    if (!kept) {
      if (job->attempt > 1) observer_->OnJobResumed(job->parameters.model, false);
      return {};
    }
    if (const auto error = Caught([&] { from = Checkpoint::Parse(kept->second); })) {
      NoteBegunAgain(job, kept->first, error->what());
      return {};
    }
  }
  job->order->Restore(from.order);
  const bool own = std::exchange(job->put_away, false);
  if (!own) job->planner->Pin(from.pinned);
  const std::string differs = own ? "" : WhatDiffers(from.identity, IdentityOf(*job));
  if (!differs.empty()) {
    NoteBegunAgain(job, from.step, differs);
    job->order->Restore("");
    return {};
  }
  observer_->OnJobResumed(job->parameters.model, true);
  return from;
}

// Keeps what a job has reached where BeginJob finds it.
void EngineImpl::KeepReached(JobWork* job) {
  Checkpoint reached = CheckpointOf(*job);
  if (store_->durable()) {
    store_->Checkpoint(job->id, reached.step, reached.Serialise());
  } else {
    job->checkpoint = std::make_unique<Checkpoint>(std::move(reached));
  }
}

// What a job that goes on later has in memory goes.
void EngineImpl::LetGo(JobWork* job) {
  LeaveStage(job);
  store_->Update(job->id, [](JobSnapshot& snapshot) { snapshot.eta_seconds.reset(); });
  {
    const std::lock_guard lock(mutex_);  // who asks where it stands reads them
    LeaveSteps(job->generation->steps_done(), job);
  }
  job->last_step_at.reset();
  job->step_pace = 0;
  job->generation.reset();
  job->planner.reset();
}

// A unit found out that the steps before it were made from something else: the job begins anew. A
// run without steps has nothing that could differ.
bool EngineImpl::BeginsAnew(const WorkPtr& work, const Error& error) {
  const JobPtr job = JobOf(work);
  if (job == nullptr || error.reason() != "EMBEDDINGS_DIFFER") return false;
  const int64_t reached = job->generation->steps_done();
  if (reached == 0) return false;
  LetGo(job.get());
  job->begins_anew = {reached, error.what()};
  const auto failed = Caught([&] {
    MakeReady(job.get());
    BeginJob(job.get());
  });
  failed ? End(work, failed) : PutBack(work);
  return true;
}

// A job that is put aside holds no device memory: what it has reached is its checkpoint. It goes on
// where that cannot be kept.
void EngineImpl::PutAside(const JobPtr& job) {
  const std::lock_guard one_at_a_time(suspend_mutex_);
  if (!job->suspend) return;  // goes on after all
  const auto error = OnDevice(job.get(), [&] {
    KeepReached(job.get());
    TellSuspended(job->id);
  });
  if (error) {
    job->suspend = false;
    logger_->Warning("job_not_suspended", {{"job", job->id}, {"message", error->what()}});
    return;
  }
  if (job->cancel->cancelled) return;  // it is in asked_ by now
  LetGo(job.get());                    // before anybody may take the engine for idle
  {
    const std::lock_guard lock(mutex_);
    if (job->cancel->cancelled) return;
    table_.PutAside(job.get());
    job->started = false;
    NoteStale(*job);
  }
  idle_.notify_all();
}

// ---- no more residents than may stay (--max_resident_mib) ------------------------------------

// Whether it may begin beside what has, without anybody's having to go for it. A call is done after
// its step.
bool EngineImpl::MayStay(const EngineWork& work) const {
  const int64_t most = options_.max_resident_bytes;
  return most == 0 || !store_->durable() || !work.is_job() ||
         table_.resident_bytes() + work.estimate->held_bytes <= most;
}

// Jobs between two steps that are not of this turn, the one whose own is furthest away first.
std::vector<JobPtr> EngineImpl::MovableBut(const std::vector<WorkPtr>& turn) const {
  std::vector<std::pair<int64_t, JobPtr>> ranked;
  for (const WorkId number : table_.begun_works()) {
    const JobPtr job = JobOf(table_.InQueue(number));
    const bool now = std::find(turn.begin(), turn.end(), job) != turn.end();
    if (job == nullptr || now || !job->generation) continue;
    if (job->generation->Next().kind != UnitKind::kStep) continue;
    ranked.emplace_back(table_.queue.Rank(number), job);
  }
  std::sort(ranked.begin(), ranked.end(),
            [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<JobPtr> jobs;
  for (auto& [rank, job] : ranked) jobs.push_back(std::move(job));
  return jobs;
}

// Before the turn begins. Where a disk is full, or what is left are decodes and the turn itself,
// more stays than should.
void EngineImpl::KeepResidentsWithin(const std::vector<WorkPtr>& turn) {
  const int64_t most = options_.max_resident_bytes;
  if (most == 0 || !store_->durable() || !turn.front()->is_job()) return;
  const auto too_many = [&] {
    const std::lock_guard lock(mutex_);
    return table_.resident_bytes() > most;
  };
  if (!too_many() || store_->WhyNotReady()) return;
  std::vector<JobPtr> movable;
  {
    const std::lock_guard lock(mutex_);
    movable = MovableBut(turn);
  }
  for (auto job = movable.begin(); job != movable.end() && too_many(); ++job) {
    if (!PutAway(*job)) return;
  }
}

// It goes on from its checkpoint when its turn comes: its run has not ended, nor will it start
// anew.
bool EngineImpl::PutAway(const JobPtr& job) {
  const auto start = SteadyClock::now();
  const auto error = OnDevice(job.get(), [&] { KeepReached(job.get()); });
  if (error) {
    logger_->Warning("job_not_put_away", {{"job", job->id}, {"message", error->what()}});
    return false;
  }
  {
    const std::lock_guard lock(mutex_);
    if (job->cancel->cancelled || job->suspend || job->unloaded) return true;  // it is in asked_
    table_.TakeBack(job.get());
  }
  LetGo(job.get());
  job->put_away = true;
  PutBack(job);
  observer_->OnPutAway(job->parameters.model, SecondsSince(start));
  return true;
}

// Jobs that were put away, when the server ends: the next one takes them up.
void EngineImpl::InterruptAll(const std::vector<std::string>& ids) {
  for (const std::string& id : ids) {
    const auto error = Caught([&] { store_->Interrupt(id); });
    if (error) logger_->Warning("job_not_parked", {{"job", id}, {"message", error->what()}});
  }
}

void EngineImpl::TellSuspended(const std::string& id) {
  store_->Update(id, [](JobSnapshot& snapshot) {
    snapshot.state = JobState::kSuspended;
    if (snapshot.asked == JobState::kSuspended) snapshot.asked.reset();
    snapshot.eta_seconds.reset();
  });
}

// The server ends: the next one goes on from here. Until then it can still be cancelled, and put
// aside.
void EngineImpl::Park(const JobPtr& job) {
  const auto error = OnDevice(job.get(), [&] {
    if (job->generation) {
      const Checkpoint reached = CheckpointOf(*job);
      store_->Checkpoint(job->id, reached.step, reached.Serialise());
    }
    store_->Interrupt(job->id);
    if (job->suspend) TellSuspended(job->id);
  });
  if (error) logger_->Warning("job_not_parked", {{"job", job->id}, {"message", error->what()}});
  job->generation.reset();
  bool cancelled = false;
  {
    const std::lock_guard lock(mutex_);
    cancelled = job->closing = job->cancel->cancelled;
    if (!cancelled) table_.PutAside(job.get());
  }
  if (cancelled) return EndJob(job, Cancelled(), {});
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
  const auto error = OnDevice(job, [&] {
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
