#include "backends/selection_policy.h"

#include <algorithm>
#include <utility>

#include "backends/error.h"

namespace denoised {
namespace {

constexpr std::chrono::milliseconds kMaxTtl = std::chrono::hours(24 * 365);

int64_t Nanoseconds(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

std::chrono::steady_clock::time_point At(int64_t nanoseconds) {
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(nanoseconds));
}

void CheckTtl(std::optional<std::chrono::milliseconds> ttl) {
  if (!ttl || (*ttl > std::chrono::milliseconds::zero() && *ttl <= kMaxTtl)) return;
  throw InvalidField("ttl", "wanted more than 0 and at most 365 days; got " +
                                std::to_string(ttl->count()) + " ms");
}

void InheritParameters(std::vector<Wish>* wishes) {
  for (auto weaker = wishes->rbegin(); weaker != wishes->rend(); ++weaker) {
    for (auto stronger = weaker + 1; stronger != wishes->rend(); ++stronger) {
      if (stronger->backend != weaker->backend) continue;
      if (stronger->parameters.empty()) stronger->parameters = weaker->parameters;
      break;  // what is stronger still has it from that one
    }
  }
}

}  // namespace

SelectionPolicy::SelectionPolicy(std::optional<AttnBackend> environment, Clock clock)
    : environment_(environment),
      own_clock_(!clock),
      clock_(clock ? std::move(clock) : std::chrono::steady_clock::now) {}

SelectionPolicy::~SelectionPolicy() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (timer_.joinable()) timer_.join();
}

Force SelectionPolicy::AddForce(AttnBackend backend, std::optional<std::chrono::milliseconds> ttl,
                                std::string reason, std::string holder, std::string parameters,
                                OnEnd on_end) {
  CheckTtl(ttl);
  Entry entry;
  entry.force.backend = backend;
  entry.force.parameters = std::move(parameters);
  entry.force.reason = std::move(reason);
  entry.force.holder = std::move(holder);
  entry.on_end = std::move(on_end);
  return Add(std::move(entry), ttl);
}

Force SelectionPolicy::Add(Entry entry, std::optional<std::chrono::milliseconds> ttl) {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  CheckRoom();
  entry.force.sequence = next_sequence_++;
  entry.force.id = "force-" + std::to_string(entry.force.sequence);
  entry.force.created_at = std::chrono::system_clock::now();
  if (ttl) entry.force.ends_at = now + *ttl;
  if (ttl && own_clock_ && !timer_.joinable()) timer_ = std::thread([this] { KeepTime(); });
  entries_.push_back(entry);
  Changed();
  return entry.force;
}

void SelectionPolicy::CheckRoom() const {
  if (entries_.size() < kMaxForces) return;
  throw Error(StatusCode::kResourceExhausted,
              "wanted fewer than " + std::to_string(kMaxForces) +
                  " live forces; release some (ListLeases names them)",
              "", "TOO_MANY_FORCES");
}

// Removes the live entries that `which` names and runs their OnEnd.
std::vector<SelectionPolicy::Entry> SelectionPolicy::Take(
    const std::function<bool(const Entry&)>& which) {
  const auto now = clock_();
  std::vector<Entry> taken;
  {
    const std::lock_guard lock(mutex_);
    DropExpired(now);
    for (auto it = entries_.begin(); it != entries_.end();) {
      const bool take = which(*it);
      if (take) taken.push_back(std::move(*it));
      it = take ? entries_.erase(it) : it + 1;
    }
    if (!taken.empty()) Changed();
  }
  for (const Entry& entry : taken) {
    if (entry.on_end) entry.on_end(entry.force);
  }
  return taken;
}

bool SelectionPolicy::Release(const std::string& id) {
  return !Take([&](const Entry& entry) { return entry.force.id == id; }).empty();
}

int SelectionPolicy::Clear() {
  const std::vector<Entry> ended = Take([](const Entry&) { return true; });
  return static_cast<int>(
      std::count_if(ended.begin(), ended.end(), [](const Entry& entry) { return !entry.lifts; }));
}

std::optional<AttnBackend> SelectionPolicy::forced() const {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  if (entries_.empty() || entries_.back().lifts) return std::nullopt;
  return entries_.back().force.backend;
}

std::vector<Force> SelectionPolicy::List() const {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  std::vector<Force> newest_first;
  for (auto it = entries_.rbegin(); it != entries_.rend(); ++it) {
    if (!it->lifts) newest_first.push_back(it->force);
  }
  return newest_first;
}

std::vector<Wish> SelectionPolicy::WishesFor(const SelectionSubject& subject) const {
  const auto now = clock_();
  std::vector<Wish> wishes;
  {
    const std::lock_guard lock(mutex_);
    DropExpired(now);
    for (auto it = entries_.rbegin(); it != entries_.rend() && !it->lifts; ++it) {
      wishes.push_back(
          {SelectionSource::kForce, it->force.backend, it->force.parameters, it->force.id});
    }
  }
  if (subject.request) wishes.push_back(*subject.request);
  if (environment_) wishes.push_back({SelectionSource::kEnvironment, *environment_, "", ""});
  if (subject.model_default) wishes.push_back(*subject.model_default);
  InheritParameters(&wishes);
  return wishes;
}

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
  for (const Entry& entry : ended) {
    if (entry.on_end) entry.on_end(entry.force);
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

void SelectionPolicy::DropExpired(std::chrono::steady_clock::time_point now) const {
  bool any = false;
  for (auto it = entries_.begin(); it != entries_.end();) {
    const bool over = it->force.ends_at && *it->force.ends_at <= now;
    if (over) expired_.push_back(std::move(*it));
    any |= over;
    it = over ? entries_.erase(it) : it + 1;
  }
  if (any) Changed();
}

void SelectionPolicy::Changed() const {
  int64_t next = INT64_MAX;
  for (const Entry& entry : entries_) {
    if (entry.force.ends_at) next = std::min(next, Nanoseconds(*entry.force.ends_at));
  }
  next_expiry_ns_.store(next, std::memory_order_release);
  version_.fetch_add(1, std::memory_order_acq_rel);
  changed_.notify_all();
}

ScopedForce::ScopedForce(SelectionPolicy& policy, std::optional<AttnBackend> backend,
                         std::string holder)
    : policy_(policy) {
  SelectionPolicy::Entry entry;
  entry.force.backend = backend.value_or(AttnBackend::kNoAttention);
  entry.force.holder = std::move(holder);
  entry.lifts = !backend;
  id_ = policy_.Add(std::move(entry), std::nullopt).id;
}

ScopedForce::~ScopedForce() { policy_.Release(id_); }

}  // namespace denoised
