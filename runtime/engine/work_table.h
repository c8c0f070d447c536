// All work that has not ended: by id, by number, in the queue's order, and how much of it there is.
#ifndef DENOISED_RUNTIME_ENGINE_WORK_TABLE_H_
#define DENOISED_RUNTIME_ENGINE_WORK_TABLE_H_

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/engine/session_work.h"
#include "runtime/engine/work.h"
#include "runtime/engine/work_queue.h"

namespace denoised {

// Guarded by the engine's mutex. Work waits (entered), has begun, or has left the queue: a job that
// is being encoded or is put aside is still known by its id.
class WorkTable {
 public:
  explicit WorkTable(const QueueOptions& options) : queue(options) {}

  // Numbers it and puts it into the queue: into its order or, while another suspect is there or has
  // begun, behind that one.
  void Enter(const WorkPtr& work, Work queued);
  // It holds memory from now on; and gives it back without having run.
  void MarkBegun(EngineWork* work);
  void TakeBack(EngineWork* work);
  // Null where it is not in the queue.
  WorkPtr InQueue(WorkId number) const;
  // Null where it has ended.
  JobPtr Job(const std::string& id) const;
  // Grows whenever a place in the queue may have changed.
  uint64_t changes() const { return queue.changes() + held_changes_; }
  // Of a suspect that waits behind another one: works and seconds before it, about.
  std::optional<OrderTree::Sums> HeldBehind(WorkId number) const;
  // What is in the queue.
  std::vector<WorkPtr> All() const;
  // Jobs that are known and neither wait nor have begun.
  std::vector<JobPtr> Aside() const;
  std::vector<JobPtr> Jobs() const;  // all that are known

  void ChangeEstimate(EngineWork* work, EstimatePtr estimate);
  void LeaveQueue(EngineWork* work);  // nothing where it has left
  void ToEncoder(JobWork* job);       // leaves the queue, and keeps what it holds until Forget
  void PutAside(JobWork* job);        // leaves the queue, or the encoder, as if it had not begun
  void Forget(const JobPtr& job);     // it has ended
  void KnowById(const JobPtr& job);
  // Jobs that are not in the queue's order and whose deadline has come.
  std::vector<JobPtr> LateAside(TimePoint now) const;
  // The first of anything that is known.
  std::optional<TimePoint> NextDeadline() const;

  // A session holds its memory from here to there, whether it is in the queue or not.
  void OpenSession(const SessionPtr& session);
  void CloseSession(SessionWork* session);  // nothing where it is closed; has left the queue
  // It has steps to do, until LeaveQueue.
  void EnterSteps(const SessionPtr& session, Work queued);
  SessionPtr Session(const std::string& id) const;  // null where it is closed
  // A job or a session of this id; null where there is none that has not ended.
  std::shared_ptr<const TrajectoryWork> Trajectory(const std::string& id) const;
  std::vector<SessionPtr> Sessions() const;
  int64_t sessions() const { return static_cast<int64_t>(sessions_.size()); }
  // What requests of sessions hold while they wait.
  void HoldRequest(int64_t bytes) { request_bytes_ += bytes; }
  void ReleaseRequest(int64_t bytes) { request_bytes_ -= bytes; }

  int64_t waiting_jobs() const { return waiting_jobs_; }
  int64_t waiting_calls() const { return waiting_calls_; }
  int64_t jobs_aside() const {
    return static_cast<int64_t>(jobs_.size()) - waiting_jobs_ - running_jobs_;
  }
  // That will give memory back: jobs and calls that have begun and are still in the queue, files
  // that are written, sessions.
  int64_t holders() const { return begun() + sessions() + (encodes() ? 1 : 0); }
  int64_t begun() const { return static_cast<int64_t>(begun_.size()); }  // and still in the queue
  const std::set<WorkId>& begun_works() const { return begun_; }
  // Jobs that have begun and not ended, those that are encoded among them.
  int64_t running_jobs() const { return running_jobs_; }
  int64_t request_bytes() const { return request_bytes_; }  // of all in the queue
  int64_t resident_bytes() const {
    return resident_bytes_;
  }  // kept between units by what has begun
  // What one of those takes above that in its largest unit, at most.
  int64_t largest_excess() const { return excesses_.empty() ? 0 : *excesses_.rbegin(); }
  bool encodes() const { return running_jobs_ > begun_jobs_; }
  // A call that has left the queue has its answer.
  void CallAnswered() { --answering_calls_; }
  bool idle() const {
    return queued_.empty() && running_jobs_ == 0 && answering_calls_ == 0 && sessions_.empty();
  }

  WorkQueue queue;

 private:
  int64_t* WaitingLike(const EngineWork& work);
  bool IsHeld(WorkId number) const;
  void Unhold(WorkId number);
  void LetNextSuspect(WorkId after);
  void Hold(const WorkEstimate& estimate);
  void Release(const WorkEstimate& estimate);

  std::unordered_map<WorkId, WorkPtr> queued_;
  std::unordered_map<std::string_view, JobPtr> jobs_;      // by their own ids
  std::set<std::pair<TimePoint, std::string>> deadlines_;  // of those
  std::map<std::string, SessionPtr> sessions_;
  std::multiset<int64_t> excesses_;
  WorkId last_number_ = 0;
  int64_t waiting_jobs_ = 0, waiting_calls_ = 0, answering_calls_ = 0;
  std::set<WorkId> begun_;
  WorkId suspect_ = 0;     // in the order, or begun; 0: none
  std::deque<Work> held_;  // suspects behind it
  uint64_t held_changes_ = 0;
  int64_t begun_jobs_ = 0, running_jobs_ = 0;
  int64_t request_bytes_ = 0, resident_bytes_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_WORK_TABLE_H_
