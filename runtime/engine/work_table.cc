#include "runtime/engine/work_table.h"

#include <algorithm>
#include <utility>

namespace denoised {
namespace {

int64_t ExcessOf(const WorkEstimate& estimate) {
  return std::max<int64_t>(0, estimate.peak_bytes - estimate.held_bytes);
}

}  // namespace

int64_t* WorkTable::WaitingLike(const EngineWork& work) {
  return work.is_job() ? &waiting_jobs_ : &waiting_calls_;
}

void WorkTable::Hold(const WorkEstimate& estimate) {
  resident_bytes_ += estimate.held_bytes;
  excesses_.insert(ExcessOf(estimate));
}

void WorkTable::Release(const WorkEstimate& estimate) {
  resident_bytes_ -= estimate.held_bytes;
  excesses_.erase(excesses_.find(ExcessOf(estimate)));
}

void WorkTable::Enter(const WorkPtr& work, Work queued) {
  work->number = queued.id = ++last_number_;
  queued_[work->number] = work;
  if (work->suspect && suspect_ != 0) {
    held_.push_back(queued);
    ++held_changes_;
  } else {
    if (work->suspect) suspect_ = work->number;
    queue.Add(queued);
  }
  ++*WaitingLike(*work);
  request_bytes_ += work->request_bytes();
}

void WorkTable::MarkBegun(EngineWork* work) {
  work->begun = true;
  --*WaitingLike(*work);
  begun_.insert(work->number);
  if (work->is_job()) ++begun_jobs_, ++running_jobs_;
  Hold(*work->estimate);
}

void WorkTable::TakeBack(EngineWork* work) {
  work->begun = false;
  ++*WaitingLike(*work);
  begun_.erase(work->number);
  if (work->is_job()) --begun_jobs_, --running_jobs_;
  Release(*work->estimate);
}

bool WorkTable::IsHeld(WorkId number) const {
  return std::ranges::any_of(held_, [&](const Work& held) { return held.id == number; });
}

void WorkTable::Unhold(WorkId number) {
  held_changes_ += std::erase_if(held_, [&](const Work& held) { return held.id == number; });
}

void WorkTable::LetNextSuspect(WorkId after) {
  if (after == 0 || after != suspect_) return;
  suspect_ = 0;
  if (held_.empty()) return;
  suspect_ = held_.front().id;
  queue.Add(held_.front());
  held_.pop_front();
}

std::optional<OrderTree::Sums> WorkTable::HeldBehind(WorkId number) const {
  if (!IsHeld(number)) return std::nullopt;
  OrderTree::Sums before;
  before.count = queue.size();
  before.seconds = std::max(0.0, queue.SecondsAhead(suspect_)) + queue.SecondsLeft(suspect_);
  for (const Work& held : held_) {
    if (held.id == number) break;
    ++before.count;
    before.seconds += held.seconds_left;
  }
  return before;
}

WorkPtr WorkTable::InQueue(WorkId number) const {
  const auto found = queued_.find(number);
  return found == queued_.end() ? nullptr : found->second;
}

JobPtr WorkTable::Job(const std::string& id) const {
  const auto found = jobs_.find(id);
  return found == jobs_.end() ? nullptr : found->second;
}

std::vector<WorkPtr> WorkTable::All() const {
  std::vector<WorkPtr> all;
  for (const auto& [number, work] : queued_) all.push_back(work);
  return all;
}

std::vector<JobPtr> WorkTable::Aside() const {
  std::vector<JobPtr> aside;
  for (const auto& [id, job] : jobs_) {
    if (!job->begun && !queued_.contains(job->number)) aside.push_back(job);
  }
  return aside;
}

std::vector<JobPtr> WorkTable::Jobs() const {
  std::vector<JobPtr> jobs;
  for (const auto& [id, job] : jobs_) jobs.push_back(job);
  return jobs;
}

void WorkTable::OpenSession(const SessionPtr& session) {
  sessions_[session->id] = session;
  session->begun = true;
  request_bytes_ += session->request_bytes();
  Hold(*session->estimate);
}

void WorkTable::CloseSession(SessionWork* session) {
  if (sessions_.erase(session->id) == 0) return;
  request_bytes_ -= session->request_bytes();
  Release(*session->estimate);
}

void WorkTable::EnterSteps(const SessionPtr& session, Work queued) {
  session->number = queued.id = ++last_number_;
  queued_[session->number] = session;
  queue.Add(queued);
}

SessionPtr WorkTable::Session(const std::string& id) const {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second;
}

std::shared_ptr<const TrajectoryWork> WorkTable::Trajectory(const std::string& id) const {
  if (JobPtr job = Job(id)) return job;
  return Session(id);
}

std::vector<SessionPtr> WorkTable::Sessions() const {
  std::vector<SessionPtr> sessions;
  for (const auto& [id, session] : sessions_) sessions.push_back(session);
  return sessions;
}

void WorkTable::KnowById(const JobPtr& job) {
  jobs_[job->id] = job;
  if (job->deadline) deadlines_.insert({*job->deadline, job->id});
}

std::optional<TimePoint> WorkTable::NextDeadline() const {
  auto next = queue.NextDeadline();
  if (deadlines_.empty()) return next;
  const TimePoint of_jobs = deadlines_.begin()->first;
  return next ? std::min(*next, of_jobs) : of_jobs;
}

std::vector<JobPtr> WorkTable::LateAside(TimePoint now) const {
  std::vector<JobPtr> late;
  for (const auto& [deadline, id] : deadlines_) {
    if (deadline > now) break;
    const JobPtr& job = jobs_.at(id);
    const bool ordered = queued_.contains(job->number) && !IsHeld(job->number);
    if (!job->begun && !job->closing && !ordered) late.push_back(job);
  }
  return late;
}

void WorkTable::ChangeEstimate(EngineWork* work, EstimatePtr estimate) {
  Release(*work->estimate);
  work->estimate = std::move(estimate);
  Hold(*work->estimate);
}

void WorkTable::LeaveQueue(EngineWork* work) {
  if (queued_.erase(work->number) == 0) return;
  queue.Remove(work->number);
  Unhold(work->number);
  if (work->is_session()) return;
  if (!work->is_job()) ++answering_calls_;
  request_bytes_ -= work->request_bytes();
  if (!work->begun) {
    --*WaitingLike(*work);
    LetNextSuspect(work->number);
    return;
  }
  begun_.erase(work->number);
  if (work->is_job()) --begun_jobs_;
  if (!work->encodes) Release(*work->estimate);
}

void WorkTable::ToEncoder(JobWork* job) {
  job->encodes = true;
  LeaveQueue(job);
}

void WorkTable::PutAside(JobWork* job) {
  LeaveQueue(job);
  if (std::exchange(job->encodes, false)) Release(*job->estimate);
  if (std::exchange(job->begun, false)) --running_jobs_;
  LetNextSuspect(job->number);
}

void WorkTable::Forget(const JobPtr& job) {
  LetNextSuspect(job->number);
  if (job->deadline) deadlines_.erase({*job->deadline, job->id});
  if (jobs_.erase(job->id) == 0 || !job->begun) return;
  --running_jobs_;
  if (job->encodes) Release(*job->estimate);
}

}  // namespace denoised
