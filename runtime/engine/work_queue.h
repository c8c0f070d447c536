// What runs next: the order of all works that wait for a device or have begun on it. Torch-free,
// no thread and no clock of its own: whoever owns it holds one lock around it and says what time it
// is. It keeps no jobs, only what the order needs to know of them.
//
// Order. A work is due at its deadline; one without gets a due time from its arrival, its length
// and its priority, so that short works come before long ones and nobody waits for ever: arrivals
// of later have later due times. Who is due first runs first (earliest deadline first, which meets
// every set of deadlines that can be met: Horn 1974), and takes the device from one that has begun
// at the next boundary of units. A due time never changes while a work makes its way, so equal
// works do not take turns.
//
// Where not all deadlines can be met, the longest works up to the first that would be late are
// given up until the others fit (Moore and Hodgson 1968): they run on as if they had just come and
// had no deadline.
//
// Between tenants: fair_turn.h.
#ifndef DENOISED_RUNTIME_ENGINE_WORK_QUEUE_H_
#define DENOISED_RUNTIME_ENGINE_WORK_QUEUE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/engine/fair_turn.h"
#include "runtime/engine/order_tree.h"
#include "runtime/job.h"

namespace denoised {

using TimePoint = std::chrono::steady_clock::time_point;

// A work's state as far as it changes on its way.
struct WorkProgress {
  double seconds_left = 0;  // predicted device time to its end where it runs alone
  // Works of equal `batch` can share the forwards of their steps; "" = shares with none, as when
  // its steps are done. Said from the beginning on, also while it still has to be prepared for
  // them.
  std::string batch;
  int64_t rows = 1;            // of its step
  double seconds_to_step = 0;  // predicted, of the units before its next step; 0 = that is next
  double longest_unit = 0;     // predicted seconds of the longest of those that are to come
  bool resident = false;       // has begun: has state in memory
};

struct Work : WorkProgress {
  WorkId id = 0;  // grows with arrival, never used twice
  std::string tenant;
  Priority priority = Priority::kNormal;
  TimePoint arrived;
  std::optional<TimePoint> deadline;
};

struct QueueOptions {
  // kFifo: in the order of arrival, to the end; no tenants, no deadlines.
  enum class Policy : uint8_t { kDeadline, kFifo };
  Policy policy = Policy::kDeadline;
  bool batching = true;  // false: nobody shares a forward
};

// What a forward has room for.
struct Room {
  int64_t rows = 1;       // in all, those of the lead included
  int64_t may_begin = 0;  // of those that are not resident, so many may come
  // Seconds of a forward of so many rows (the cost model's). Empty: rows cost nothing, so all may
  // come.
  std::function<double(int64_t rows)> seconds;
};

class WorkQueue {
 public:
  explicit WorkQueue(QueueOptions options = {}) : options_(options) {}

  // All of these are O(log works), and none depends on the number of tenants otherwise.
  void Add(const Work& work);
  void Update(WorkId id, const WorkProgress& progress);
  std::optional<Work> Remove(WorkId id);
  // The tenant's works used the device for so long. Of a forward that several share, each tenant is
  // charged with its rows' part.
  void Charge(const std::string& tenant, double device_seconds);

  // Whose unit is next. `may_begin`: whether it may be one that is not resident.
  std::optional<WorkId> Lead(TimePoint now, bool may_begin);
  // Of what is not resident the first few, in order: the first of them that is `wanted`.
  std::optional<WorkId> FirstOutside(const std::function<bool(WorkId)>& wanted) const;
  // Of a lead whose next unit is a step: the lead, first, and those that share its forward, in
  // order. Among them are some whose step is not next yet: they are brought that far first, one
  // unit at a time, then it is asked again. Nobody comes along at the cost of a deadline that is
  // met without, or of one who is late already, but where all behind it gain twice what all before
  // it lose. O(those looked at x log works).
  std::vector<WorkId> Companions(WorkId lead, const Room& room, TimePoint now) const;

  // With what it can share forwards; "" = with nothing, or not here. How many works are of it.
  std::string BatchOf(WorkId id) const;
  int64_t InBatch(const std::string& batch) const;
  // The next deadline of any work, late or not.
  std::optional<TimePoint> NextDeadline() const;

  // Works that run before this one if nothing else comes, and the seconds that they are predicted
  // to take: so many until it begins, or goes on. Nothing: not here.
  std::optional<OrderTree::Sums> Ahead(WorkId id) const;
  int64_t Rank(WorkId id) const;         // their number; -1: not here
  double SecondsAhead(WorkId id) const;  // negative: not here
  // Grows whenever one of these may have changed.
  uint64_t changes() const { return changes_; }
  // Of what is not resident the one that is due first: so many until it begins. 0 where there is
  // none.
  double SecondsToNextBegin() const;
  // Until the first of the tenant's works runs. 0 where it has none.
  double SecondsToTurn(const std::string& tenant) const;
  // What is left of a work. 0: not here.
  double SecondsLeft(WorkId id) const;
  double LongestUnit(WorkId id) const;
  // Predicted seconds from now to the end of such a work if it came now: what Submit holds against
  // a deadline. Not the whole queue, only what comes before it in the order; where its deadline
  // would be given up so that others are met, as if it had none.
  double PredictedFinish(const Work& work, TimePoint now);
  double PredictedBegin(const Work& work, TimePoint now);  // likewise
  // Those whose deadline has come, the earliest first; they stay until they are removed.
  std::vector<WorkId> Expired(TimePoint now) const;

  int64_t size() const { return static_cast<int64_t>(works_.size()); }
  int64_t resident() const { return resident_; }
  uint64_t visits() const;  // tree nodes looked at: what tests count instead of time

 private:
  struct Tenant {
    double virtual_time = 0;
    OrderTree works;
    std::set<OrderKey> residents;
  };
  struct Kept {
    Work work;
    OrderKey key;
    double length = 0;   // device seconds in all, as predicted when it came
    bool bound = false;  // a deadline that is to be met
    bool given_up() const { return work.deadline && !bound; }
  };
  struct Batch {
    std::set<OrderKey> residents, others;
  };

  bool fifo() const { return options_.policy == QueueOptions::Policy::kFifo; }
  Kept Keep(const Work& work) const;
  const std::string& TenantOf(const Work& work) const;
  OrderTree::Entry EntryOf(const Kept& kept) const;
  void Insert(const Kept& kept);
  void Erase(const Kept& kept);
  void EnterBatch(const Kept& kept);
  void LeaveBatch(const Kept& kept);
  void Seat(const std::string& name, const Tenant& tenant);
  void RaiseFloor();
  void GiveUpWhatCannotBeMet(double now);
  bool Pays(const Kept& rider, int64_t rows, const Room& room, double now) const;
  OrderTree::Sums Ahead(const OrderKey& key, const std::string& tenant, double length) const;
  bool WouldBeGivenUp(const Kept& kept, double now);
  FairTurn::Head HeadOf(const OrderKey& key) const;

  const QueueOptions options_;
  std::unordered_map<WorkId, Kept> works_;
  OrderTree order_;             // of all tenants
  std::set<OrderKey> outside_;  // those that are not resident
  std::map<std::string, Tenant> tenants_;
  FairTurn turn_, resident_turn_;                      // of all works; of the resident ones
  std::set<std::pair<int64_t, std::string>> crowded_;  // (works, tenant)
  std::set<std::pair<double, std::string>> resting_;   // (virtual time, tenant without work)
  std::unordered_map<std::string, Batch> batches_;
  std::set<std::pair<TimePoint, WorkId>> deadlines_;
  double floor_ = 0;  // virtual time at which a tenant that comes begins
  int64_t resident_ = 0, given_up_ = 0;
  uint64_t changes_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_WORK_QUEUE_H_
