#include "runtime/engine/work_queue.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

namespace denoised {
namespace {

// A work without a deadline is due when it has waited so many times as long as it takes.
constexpr std::array<double, 3> kStretch = {128, 16, 1};  // BATCH, NORMAL, URGENT
constexpr double kMostSeconds = 1e8;
constexpr double kLeastLength = 0.1;  // seconds; below it works are served as they come
// Who is given up where deadlines cannot be met: the longest, as if it were so much longer.
constexpr std::array<double, 3> kWeight = {4, 1, 0.25};
// Tenants whose backlog is looked at where a place in the order is asked for: those with the most
// works. Of the others all that is due earlier counts.
constexpr int kCrowdedTenants = 32;
// Works of a batch that are passed by because they have too many rows or do not pay.
constexpr int kPassedBy = 8;
// Where deadlines are at stake a second lost weighs as much as two that are won, because those
// before are nearer to theirs.
constexpr double kFar = 4;  // times what a deadline might lose
constexpr double kLossWeighs = 2;

double SecondsOf(TimePoint time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

// A prediction that is none must not make an order that is none.
double Sane(double seconds) { return std::min(std::max(0.0, seconds), kMostSeconds); }

double SoftDue(const Work& work, double from) {
  return from + kStretch[static_cast<size_t>(work.priority)] * (work.seconds_left + kLeastLength);
}

}  // namespace

WorkQueue::Kept WorkQueue::Keep(const Work& work) const {
  Kept kept{.work = work, .key = {.id = work.id}, .length = Sane(work.seconds_left)};
  kept.work.seconds_left = kept.length;
  if (fifo()) return kept;
  kept.bound = work.deadline.has_value();
  kept.key.due =
      kept.bound ? SecondsOf(*work.deadline) : SoftDue(kept.work, SecondsOf(work.arrived));
  return kept;
}

OrderTree::Entry WorkQueue::EntryOf(const Kept& kept) const {
  const double seconds = kept.work.seconds_left;
  return {.key = kept.key,
          .seconds = seconds,
          .bound = kept.bound,
          .weight = seconds * kWeight[static_cast<size_t>(kept.work.priority)]};
}

// First come, first served knows no tenants.
const std::string& WorkQueue::TenantOf(const Work& work) const {
  static const std::string everybody;
  return fifo() ? everybody : work.tenant;
}

FairTurn::Head WorkQueue::HeadOf(const OrderKey& key) const {
  return {.key = key, .seconds = works_.at(key.id).length};
}

void WorkQueue::Seat(const std::string& name, const Tenant& tenant) {
  std::optional<FairTurn::Head> first, resident;
  if (const auto key = tenant.works.First()) first = HeadOf(*key);
  if (!tenant.residents.empty()) resident = HeadOf(*tenant.residents.begin());
  turn_.Place(name, tenant.virtual_time, first);
  resident_turn_.Place(name, tenant.virtual_time, resident);
}

// A tenant that comes, or comes back, begins where the one is that is furthest behind: what it did
// not use while it was away is nobody's debt. What it used beyond that stays its own.
void WorkQueue::RaiseFloor() {
  floor_ = std::max(floor_, turn_.LeastVirtualTime().value_or(floor_));
  while (!resting_.empty() && (works_.empty() || resting_.begin()->first <= floor_)) {
    tenants_.erase(resting_.begin()->second);
    resting_.erase(resting_.begin());
  }
}

void WorkQueue::EnterBatch(const Kept& kept) {
  if (kept.work.batch.empty() || !options_.batching) return;
  Batch& batch = batches_[kept.work.batch];
  (kept.work.resident ? batch.residents : batch.others).insert(kept.key);
}

void WorkQueue::LeaveBatch(const Kept& kept) {
  const auto batch = batches_.find(kept.work.batch);
  if (batch == batches_.end()) return;
  batch->second.residents.erase(kept.key);
  batch->second.others.erase(kept.key);
  if (batch->second.residents.empty() && batch->second.others.empty()) batches_.erase(batch);
}

void WorkQueue::Insert(const Kept& kept) {
  ++changes_;
  const std::string& name = TenantOf(kept.work);
  Tenant& tenant = tenants_[name];
  if (tenant.works.empty()) {
    resting_.erase({tenant.virtual_time, name});
    tenant.virtual_time = std::max(tenant.virtual_time, floor_);
  }
  crowded_.erase({tenant.works.total().count, name});
  tenant.works.Insert(EntryOf(kept));
  crowded_.insert({tenant.works.total().count, name});
  order_.Insert(EntryOf(kept));
  (kept.work.resident ? tenant.residents : outside_).insert(kept.key);
  resident_ += kept.work.resident ? 1 : 0;
  EnterBatch(kept);
  Seat(name, tenant);
}

void WorkQueue::Erase(const Kept& kept) {
  ++changes_;
  const std::string& name = TenantOf(kept.work);
  Tenant& tenant = tenants_.at(name);
  crowded_.erase({tenant.works.total().count, name});
  tenant.works.Erase(kept.key);
  if (!tenant.works.empty()) crowded_.insert({tenant.works.total().count, name});
  order_.Erase(kept.key);
  (kept.work.resident ? tenant.residents : outside_).erase(kept.key);
  resident_ -= kept.work.resident ? 1 : 0;
  LeaveBatch(kept);
  Seat(name, tenant);
  if (tenant.works.empty()) resting_.insert({tenant.virtual_time, name});
}

void WorkQueue::Add(const Work& work) {
  const Kept& kept = works_.emplace(work.id, Keep(work)).first->second;
  given_up_ += kept.given_up() ? 1 : 0;
  Insert(kept);
  if (work.deadline) deadlines_.insert({*work.deadline, work.id});
}

std::optional<Work> WorkQueue::Remove(WorkId id) {
  const auto found = works_.find(id);
  if (found == works_.end()) return std::nullopt;
  Erase(found->second);
  given_up_ -= found->second.given_up() ? 1 : 0;
  Work work = std::move(found->second.work);
  works_.erase(found);
  if (work.deadline) deadlines_.erase({*work.deadline, id});
  RaiseFloor();
  return work;
}

void WorkQueue::Update(WorkId id, const WorkProgress& progress) {
  const auto found = works_.find(id);
  if (found == works_.end()) return;
  ++changes_;
  Kept& kept = found->second;
  const bool moves = kept.work.resident != progress.resident;
  const bool leaves = moves || kept.work.batch != progress.batch;
  if (leaves) LeaveBatch(kept);
  static_cast<WorkProgress&>(kept.work) = progress;
  kept.work.seconds_left = Sane(progress.seconds_left);
  if (leaves) EnterBatch(kept);
  Tenant& tenant = tenants_.at(TenantOf(kept.work));
  const OrderTree::Entry entry = EntryOf(kept);
  order_.Change(kept.key, entry.seconds, entry.weight);
  tenant.works.Change(kept.key, entry.seconds, entry.weight);
  if (!moves) return;
  resident_ += progress.resident ? 1 : -1;
  (progress.resident ? outside_ : tenant.residents).erase(kept.key);
  (progress.resident ? tenant.residents : outside_).insert(kept.key);
  Seat(TenantOf(kept.work), tenant);
}

void WorkQueue::Charge(const std::string& tenant, double device_seconds) {
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end() || fifo()) return;
  ++changes_;
  const bool rests = resting_.erase({found->second.virtual_time, tenant}) > 0;
  found->second.virtual_time += device_seconds;
  if (rests) {
    resting_.insert({found->second.virtual_time, tenant});
  } else {
    Seat(tenant, found->second);
  }
  RaiseFloor();
}

void WorkQueue::GiveUpWhatCannotBeMet(double now) {
  while (const auto late = order_.FirstLate(now)) {
    const auto heaviest = order_.HeaviestUpTo(*late);
    if (!heaviest) return;
    Kept& kept = works_.at(heaviest->id);
    Erase(kept);
    kept.bound = false;
    ++given_up_;
    kept.key.due = SoftDue(kept.work, now);
    Insert(kept);
  }
}

std::string WorkQueue::BatchOf(WorkId id) const {
  const auto found = works_.find(id);
  return found == works_.end() || !options_.batching ? "" : found->second.work.batch;
}

int64_t WorkQueue::InBatch(const std::string& batch) const {
  const auto found = batches_.find(batch);
  if (found == batches_.end()) return 0;
  return static_cast<int64_t>(found->second.residents.size() + found->second.others.size());
}

std::optional<TimePoint> WorkQueue::NextDeadline() const {
  if (deadlines_.empty()) return std::nullopt;
  return deadlines_.begin()->first;
}

std::optional<WorkId> WorkQueue::Lead(TimePoint now, bool may_begin) {
  GiveUpWhatCannotBeMet(SecondsOf(now));
  const auto head = (may_begin ? turn_ : resident_turn_).Turn();
  if (!head) return std::nullopt;
  return head->key.id;
}

std::optional<WorkId> WorkQueue::FirstOutside(const std::function<bool(WorkId)>& wanted) const {
  int passed = 0;
  for (const OrderKey& key : outside_) {
    if (wanted(key.id)) return key.id;
    if (++passed == kPassedBy) break;
  }
  return std::nullopt;
}

// Whether a forward of `rows` rows had better take this one too: what it saves are the seconds that
// its step would take alone, less what it adds to this forward.
bool WorkQueue::Pays(const Kept& rider, int64_t rows, const Room& room, double now) const {
  if (!room.seconds || fifo()) return true;
  const double extra = room.seconds(rows + rider.work.rows) - room.seconds(rows);
  const double saved = room.seconds(rider.work.rows) - extra;
  const double delay = extra + rider.work.seconds_to_step;
  const auto [sums, slack] = order_.BeforeFrom(rider.key, now);
  const bool deadlines_before = std::isfinite(slack.bound);
  if (!deadlines_before && slack.all >= delay) return true;
  if (slack.bound < delay) return false;
  if (rider.given_up()) return extra <= 0;
  // Where it rode along for all that comes before it, deadlines would still be far.
  const double delays = delay + sums.seconds * extra / std::max(room.seconds(rows), 1e-9);
  if (slack.all >= delay && slack.bound >= kFar * delays) return true;
  const auto before = static_cast<double>(sums.count);
  const double behind = static_cast<double>(size() - given_up_) - before;
  return saved * behind >= (deadlines_before ? kLossWeighs : 1) * extra * before;
}

std::vector<WorkId> WorkQueue::Companions(WorkId lead, const Room& room, TimePoint now) const {
  std::vector<WorkId> sharers = {lead};
  const Kept& first = works_.at(lead);
  const auto found = batches_.find(first.work.batch);
  if (found == batches_.end()) return sharers;
  const Batch& batch = found->second;
  int64_t rows = first.work.rows, may_begin = room.may_begin - (first.work.resident ? 0 : 1);
  int passed = 0;
  auto resident = batch.residents.begin(), other = batch.others.begin();
  while (rows < room.rows && passed < kPassedBy) {
    const bool more = may_begin > 0 && other != batch.others.end();
    if (!more && resident == batch.residents.end()) break;
    const bool begins = more && (resident == batch.residents.end() || *other < *resident);
    const Kept& rider = works_.at((begins ? other++ : resident++)->id);
    if (rider.key == first.key) continue;
    if (rows + rider.work.rows > room.rows || !Pays(rider, rows, room, SecondsOf(now))) {
      ++passed;
      continue;
    }
    sharers.push_back(rider.work.id);
    rows += rider.work.rows;
    may_begin -= begins ? 1 : 0;
  }
  return sharers;
}

// What runs before a work of that key: all that is due earlier, but of each other tenant no more
// than it may get ahead, and no less than it is behind.
OrderTree::Sums WorkQueue::Ahead(const OrderKey& key, const std::string& name,
                                 double length) const {
  OrderTree::Sums ahead = order_.Before(key);
  const auto found = tenants_.find(name);
  double time = floor_;  // of the tenant when the work's turn has come
  if (found != tenants_.end()) {
    time = std::max(time, found->second.virtual_time);
    time += found->second.works.Before(key).seconds;
  }
  int looked_at = 0;
  for (auto it = crowded_.rbegin(); it != crowded_.rend() && looked_at < kCrowdedTenants; ++it) {
    if (it->second == name) continue;
    ++looked_at;
    const Tenant& other = tenants_.at(it->second);
    const double room = std::min(length, HeadOf(*other.works.First()).seconds);
    const double gap = time - other.virtual_time;
    const OrderTree::Sums due = other.works.Before(key);
    const OrderTree::Sums most = other.works.Within(gap + room);
    const OrderTree::Sums least = other.works.Within(gap - room);
    const OrderTree::Sums runs =
        due.count > most.count ? most : (due.count < least.count ? least : due);
    ahead.count += runs.count - due.count;
    ahead.seconds += runs.seconds - due.seconds;
  }
  return ahead;
}

std::optional<OrderTree::Sums> WorkQueue::Ahead(WorkId id) const {
  const auto found = works_.find(id);
  if (found == works_.end()) return std::nullopt;
  const Kept& kept = found->second;
  return Ahead(kept.key, TenantOf(kept.work), kept.length);
}

int64_t WorkQueue::Rank(WorkId id) const {
  const auto ahead = Ahead(id);
  return ahead ? ahead->count : -1;
}

double WorkQueue::SecondsAhead(WorkId id) const {
  const auto ahead = Ahead(id);
  return ahead ? ahead->seconds : -1;
}

double WorkQueue::SecondsToNextBegin() const {
  return outside_.empty() ? 0 : SecondsAhead(outside_.begin()->id);
}

double WorkQueue::SecondsToTurn(const std::string& tenant) const {
  const auto found = tenants_.find(fifo() ? "" : tenant);
  if (found == tenants_.end() || found->second.works.empty()) return 0;
  return SecondsAhead(found->second.works.First()->id);
}

double WorkQueue::SecondsLeft(WorkId id) const {
  const auto found = works_.find(id);
  return found == works_.end() ? 0 : found->second.work.seconds_left;
}

double WorkQueue::LongestUnit(WorkId id) const {
  const auto found = works_.find(id);
  return found == works_.end() ? 0 : found->second.work.longest_unit;
}

bool WorkQueue::WouldBeGivenUp(const Kept& kept, double now) {
  order_.Insert(EntryOf(kept));
  const auto late = order_.FirstLate(now);
  const bool would = late && order_.HeaviestUpTo(*late) == kept.key;
  order_.Erase(kept.key);
  return would;
}

double WorkQueue::PredictedFinish(const Work& work, TimePoint now) {
  return PredictedBegin(work, now) + Keep(work).length;
}

double WorkQueue::PredictedBegin(const Work& work, TimePoint now) {
  GiveUpWhatCannotBeMet(SecondsOf(now));
  Kept kept = Keep(work);
  kept.key.id = std::numeric_limits<WorkId>::max();  // after all that are due at once
  if (kept.bound && WouldBeGivenUp(kept, SecondsOf(now))) {
    kept.key.due = SoftDue(kept.work, SecondsOf(now));
  }
  return Ahead(kept.key, TenantOf(work), kept.length).seconds;
}

std::vector<WorkId> WorkQueue::Expired(TimePoint now) const {
  std::vector<WorkId> expired;
  for (const auto& [deadline, id] : deadlines_) {
    if (deadline > now) break;
    expired.push_back(id);
  }
  return expired;
}

uint64_t WorkQueue::visits() const {
  uint64_t visits = order_.visits();
  for (const auto& [name, tenant] : tenants_) visits += tenant.works.visits();
  return visits;
}

}  // namespace denoised
