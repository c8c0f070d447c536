#include "runtime/selection_policy.h"

#include <algorithm>
#include <array>
#include <utility>

#include "backends/error.h"

namespace denoised {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kMaxTtl = std::chrono::hours(24 * 365);

// In the enum's order.
constexpr std::array<std::string_view, 6> kEndNames = {"released", "expired",    "holder_left",
                                                       "budget",   "not_finite", "degenerate"};

int64_t Nanoseconds(steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

steady_clock::time_point At(int64_t nanoseconds) {
  return steady_clock::time_point(std::chrono::nanoseconds(nanoseconds));
}

void CheckTtl(std::optional<std::chrono::milliseconds> ttl) {
  if (!ttl || (*ttl > std::chrono::milliseconds::zero() && *ttl <= kMaxTtl)) return;
  throw InvalidField("ttl", "wanted more than 0 and at most 365 days; got " +
                                std::to_string(ttl->count()) + " ms");
}

Wish WishOf(const Lease& lease) {
  Wish wish{SelectionSource::kForce, lease.backend, lease.parameters, lease.id};
  wish.strict = lease.mode == SelectionMode::kStrict;
  return wish;
}

// As `source`'s; of a schedule the first rule that holds counts.
void AddRules(const std::vector<AttentionRule>& rules, SelectionSource source,
              std::vector<ScopedWish>* wishes) {
  for (size_t i = 0; i < rules.size(); ++i) {
    Wish wish{source, rules[i].backend, rules[i].parameters_json, ""};
    wish.rule = static_cast<int>(i);
    wish.strict = rules[i].mode == SelectionMode::kStrict;
    wishes->push_back({rules[i].where, std::move(wish)});
  }
}

}  // namespace

std::string_view LeaseEndName(LeaseEnd end) { return kEndNames.at(static_cast<size_t>(end)); }

SelectionPolicy::SelectionPolicy(std::optional<AttnBackend> environment, Clock clock)
    : environment_(environment),
      own_clock_(!clock),
      clock_(clock ? std::move(clock) : steady_clock::now) {}

SelectionPolicy::~SelectionPolicy() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (timer_.joinable()) timer_.join();
}

// ---- changes -----------------------------------------------------------------------------------

Lease SelectionPolicy::Force(LeaseRequest request, OnEnd on_end) {
  CheckTtl(request.ttl);
  CheckScope(request.scope, "scope");
  if (request.budget) CheckBudget(*request.budget, "budget");
  Entry entry;
  entry.lease.backend = request.backend;
  entry.lease.parameters = std::move(request.parameters);
  entry.lease.scope = std::move(request.scope);
  entry.lease.mode = request.mode;
  entry.lease.budget = request.budget;
  entry.lease.reason = std::move(request.reason);
  entry.lease.holder = std::move(request.holder);
  entry.lease.held = request.held;
  entry.on_end = std::move(on_end);
  return Add(std::move(entry), request.ttl, request.expected_generation);
}

Lease SelectionPolicy::Add(Entry entry, std::optional<std::chrono::milliseconds> ttl,
                           std::optional<uint64_t> expected_generation) {
  const auto now = clock_();
  {
    const std::lock_guard lock(mutex_);
    DropExpired(now);
    CheckGeneration(expected_generation);
    CheckRoom();
    Lease& lease = entry.lease;
    lease.sequence = next_sequence_++;
    lease.id = "force-" + std::to_string(lease.sequence);
    lease.created_at = std::chrono::system_clock::now();
    if (ttl) lease.ends_at = now + *ttl;
    if (ttl) StartTimer();
    lease.generation = entry.lifts ? generation_ : generation_ + 1;
    if (!entry.lifts) Note({LeaseEvent::Kind::kMade, lease, 0, {}, lease.holder, ""});
    entries_.push_back(entry);
    Changed();
  }
  TellEvents();
  return entry.lease;
}

Lease SelectionPolicy::Renew(const std::string& id, std::optional<std::chrono::milliseconds> ttl,
                             const std::string& by, std::optional<uint64_t> expected_generation) {
  CheckTtl(ttl);
  const auto now = clock_();
  Lease renewed;
  {
    const std::lock_guard lock(mutex_);
    DropExpired(now);
    CheckGeneration(expected_generation);
    const auto found = std::ranges::find_if(
        entries_, [&](const Entry& entry) { return !entry.lifts && entry.lease.id == id; });
    if (found == entries_.end()) {
      throw Error(StatusCode::kNotFound, "no live lease '" + id.substr(0, 64) + "'", "lease_id",
                  "LEASE_NOT_FOUND");
    }
    found->lease.ends_at = ttl ? std::optional(now + *ttl) : std::nullopt;
    if (ttl) StartTimer();
    found->lease.generation = generation_ + 1;
    renewed = found->lease;
    Note({LeaseEvent::Kind::kRenewed, renewed, 0, {}, by, ""});
    Changed();
  }
  TellEvents();
  return renewed;
}

void SelectionPolicy::StartTimer() {
  if (own_clock_ && !timer_.joinable()) timer_ = std::thread([this] { KeepTime(); });
}

void SelectionPolicy::CheckGeneration(std::optional<uint64_t> expected) const {
  if (!expected || *expected == generation_) return;
  throw Error(StatusCode::kAborted,
              "the leases are at generation " + std::to_string(generation_) + ", not at " +
                  std::to_string(*expected) + ": somebody changed them meanwhile",
              "expected_generation", "GENERATION_MISMATCH");
}

void SelectionPolicy::CheckRoom() const {
  if (entries_.size() < kMaxLeases) return;
  throw Error(StatusCode::kResourceExhausted,
              "wanted fewer than " + std::to_string(kMaxLeases) +
                  " live forces; release some (ListLeases names them)",
              "", "TOO_MANY_FORCES");
}

// Removes the live entries that `which` names, tells of it and runs their OnEnd.
std::vector<SelectionPolicy::Entry> SelectionPolicy::Take(
    const std::function<bool(const Entry&)>& which, LeaseEnd end, const std::string& why,
    const std::string& by, std::optional<uint64_t> expected_generation) {
  const auto now = clock_();
  std::vector<Entry> taken;
  {
    const std::lock_guard lock(mutex_);
    DropExpired(now);
    CheckGeneration(expected_generation);
    for (auto it = entries_.begin(); it != entries_.end();) {
      const bool take = which(*it);
      if (take && !it->lifts) Note({LeaseEvent::Kind::kEnded, it->lease, 0, end, by, why});
      if (take) taken.push_back(std::move(*it));
      it = take ? entries_.erase(it) : it + 1;
    }
    if (!taken.empty()) Changed();
  }
  TellEvents();
  for (const Entry& entry : taken) {
    if (entry.on_end) entry.on_end(entry.lease);
  }
  return taken;
}

bool SelectionPolicy::Release(const std::string& id, const std::string& by,
                              std::optional<uint64_t> expected_generation) {
  return !Take([&](const Entry& entry) { return entry.lease.id == id; }, LeaseEnd::kReleased, "",
               by, expected_generation)
              .empty();
}

bool SelectionPolicy::End(const std::string& id, LeaseEnd end, const std::string& why,
                          const std::string& by) {
  return !Take([&](const Entry& entry) { return entry.lease.id == id; }, end, why, by).empty();
}

int SelectionPolicy::Clear(const std::string& by, std::optional<uint64_t> expected_generation) {
  const std::vector<Entry> ended =
      Take([](const Entry&) { return true; }, LeaseEnd::kReleased, "", by, expected_generation);
  return static_cast<int>(
      std::count_if(ended.begin(), ended.end(), [](const Entry& entry) { return !entry.lifts; }));
}

void SelectionPolicy::Restore(std::vector<Lease> leases, uint64_t generation) {
  const std::lock_guard lock(mutex_);
  std::ranges::sort(leases, {}, &Lease::sequence);
  for (Lease& lease : leases) {
    next_sequence_ = std::max(next_sequence_, lease.sequence + 1);
    if (lease.ends_at) StartTimer();
    entries_.push_back({std::move(lease), {}, false});
  }
  // An id is never used twice: each lease has moved the generation.
  next_sequence_ = std::max(next_sequence_, generation + 1);
  generation_ = generation;
  Changed();
}

void SelectionPolicy::SetListener(Listener listener) {
  const std::lock_guard telling(telling_);
  listener_ = std::move(listener);
}

void SelectionPolicy::Note(LeaseEvent event) const {
  event.generation = ++generation_;
  events_.push_back(std::move(event));
}

void SelectionPolicy::TellEvents() {
  const std::lock_guard telling(telling_);
  while (true) {
    LeaseEvent event;
    {
      const std::lock_guard lock(mutex_);
      if (events_.empty()) return;
      event = std::move(events_.front());
      events_.pop_front();
    }
    if (listener_) listener_(event);
  }
}

// ---- answers -----------------------------------------------------------------------------------

uint64_t SelectionPolicy::generation() const {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  return generation_;
}

std::optional<AttnBackend> SelectionPolicy::forced() const {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  for (auto it = entries_.rbegin(); it != entries_.rend(); ++it) {
    if (it->lifts) return std::nullopt;
    if (it->lease.scope == LeaseScope()) return it->lease.backend;
  }
  return std::nullopt;
}

std::vector<Lease> SelectionPolicy::List() const {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  std::vector<Lease> newest_first;
  for (auto it = entries_.rbegin(); it != entries_.rend(); ++it) {
    if (!it->lifts) newest_first.push_back(it->lease);
  }
  return newest_first;
}

std::optional<Lease> SelectionPolicy::Find(const std::string& id) const {
  const std::vector<Lease> all = List();
  const auto found = std::ranges::find(all, id, &Lease::id);
  return found == all.end() ? std::nullopt : std::optional(*found);
}

// What is older than a lift counts for nothing.
std::shared_ptr<const LeaseList> SelectionPolicy::leases() const {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  if (list_) return list_;
  auto list = std::make_shared<LeaseList>();
  for (auto it = entries_.rbegin(); it != entries_.rend() && !it->lifts; ++it) {
    list->push_back(it->lease);
  }
  std::ranges::stable_sort(*list, [](const Lease& a, const Lease& b) {
    return CompareNarrowness(a.scope, b.scope) < 0;
  });
  list_ = std::move(list);
  return list_;
}

std::vector<ScopedWish> SelectionPolicy::WishesFor(const SelectionSubject& subject,
                                                   const LeaseList& leases) const {
  std::vector<ScopedWish> wishes;
  for (const Lease& lease : leases) {
    if (lease.scope.Holds(subject.work)) wishes.push_back({lease.scope.where, WishOf(lease)});
  }
  AddRules(subject.request_rules, SelectionSource::kRequest, &wishes);
  if (subject.request) wishes.push_back({{}, *subject.request});
  if (environment_) wishes.push_back({{}, {SelectionSource::kEnvironment, *environment_, "", ""}});
  AddRules(subject.model_rules, SelectionSource::kModelDefault, &wishes);
  if (subject.model_default) wishes.push_back({{}, *subject.model_default});
  return wishes;
}

// ---- time --------------------------------------------------------------------------------------

uint64_t SelectionPolicy::version() const {
  const int64_t expiry = next_expiry_ns_.load(std::memory_order_acquire);
  if (expiry != INT64_MAX) {
    const auto now = clock_();
    if (Nanoseconds(now) >= expiry) {
      const std::lock_guard lock(mutex_);
      DropExpired(now);
    }
  }
  return version_.load(std::memory_order_acquire);
}

void SelectionPolicy::EndDue() {
  const auto now = clock_();
  std::vector<Entry> ended;
  {
    const std::lock_guard lock(mutex_);
    DropExpired(now);
    ended.swap(expired_);
  }
  TellEvents();
  for (const Entry& entry : ended) {
    if (entry.on_end) entry.on_end(entry.lease);
  }
}

void SelectionPolicy::KeepTime() {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    const int64_t next = next_expiry_ns_.load();
    if (!expired_.empty() || (next != INT64_MAX && clock_() >= At(next))) {
      lock.unlock();
      EndDue();
      lock.lock();
    } else if (next != INT64_MAX) {
      changed_.wait_until(lock, At(next));
    } else {
      changed_.wait(lock);
    }
  }
}

void SelectionPolicy::DropExpired(steady_clock::time_point now) const {
  bool any = false;
  for (auto it = entries_.begin(); it != entries_.end();) {
    const bool over = it->lease.ends_at && *it->lease.ends_at <= now;
    if (over) {
      Note({LeaseEvent::Kind::kEnded, it->lease, 0, LeaseEnd::kExpired, "", "its time is over"});
      expired_.push_back(std::move(*it));
    }
    any |= over;
    it = over ? entries_.erase(it) : it + 1;
  }
  if (any) Changed();
}

void SelectionPolicy::Changed() const {
  int64_t next = INT64_MAX;
  for (const Entry& entry : entries_) {
    if (entry.lease.ends_at) next = std::min(next, Nanoseconds(*entry.lease.ends_at));
  }
  list_.reset();
  next_expiry_ns_.store(next, std::memory_order_release);
  version_.fetch_add(1, std::memory_order_acq_rel);
  changed_.notify_all();
}

ScopedForce::ScopedForce(SelectionPolicy& policy, std::optional<AttnBackend> backend,
                         std::string holder)
    : policy_(policy) {
  SelectionPolicy::Entry entry;
  entry.lease.backend = backend.value_or(AttnBackend::kNoAttention);
  entry.lease.holder = std::move(holder);
  entry.lease.held = true;
  entry.lifts = !backend;
  id_ = policy_.Add(std::move(entry), std::nullopt, std::nullopt).id;
}

ScopedForce::~ScopedForce() { policy_.Release(id_); }

}  // namespace denoised
