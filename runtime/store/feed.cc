#include "runtime/store/feed.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "runtime/caught.h"

namespace denoised {
namespace {

Error OtherRequest(const std::string& id) {
  return Error(StatusCode::kAlreadyExists,
               "idempotency_key: job '" + id + "' was made under this key by another request",
               "idempotency_key", "IDEMPOTENCY_KEY");
}

Error NoJob(const std::string& id) {
  return Error(StatusCode::kNotFound, "no job '" + id.substr(0, 64) + "'", "job_id",
               "JOB_NOT_FOUND");
}

bool MayFollow(JobState from, JobState to) {
  if (to == from || IsTerminal(to) || from == JobState::kQueued) return true;
  return from == JobState::kSuspended || to == JobState::kSuspended;
}

void RequireForward(const JobSnapshot& job, JobState to) {
  if (MayFollow(job.state, to)) return;
  throw Error(StatusCode::kInternal, "job '" + job.id + "' cannot go from " +
                                         std::string(JobStateName(job.state)) + " to " +
                                         std::string(JobStateName(to)));
}

}  // namespace

bool Feed::Record::watched() const {
  return std::any_of(watchers.begin(), watchers.end(),
                     [](const std::weak_ptr<Watcher>& watcher) { return !watcher.expired(); });
}

uint64_t Feed::Record::bytes() const {
  uint64_t bytes = 0;
  for (const auto& [format, result] : results) bytes += result.info.size_bytes;
  return bytes;
}

void Feed::Record::Add(Result result) {
  if (!reading) reading = std::make_shared<int>();
  const ArtifactFormat format = result.info.format;
  results[format] = std::move(result);
}

const Feed::Record* Feed::Find(const std::string& id) const {
  const auto found = records_.find(id);
  return found == records_.end() || found->second.accepting ? nullptr : &found->second;
}

Feed::Record* Feed::Find(const std::string& id) {
  return const_cast<Record*>(std::as_const(*this).Find(id));
}

// ---- coming in

std::optional<JobSnapshot> Feed::MadeBefore(const std::string& key,
                                            const std::string& digest) const {
  const std::lock_guard lock(mutex_);
  const auto found = keys_.find(key);
  if (found == keys_.end()) return std::nullopt;
  const Record& record = records_.at(found->second);
  if (record.row.request_digest != digest) throw OtherRequest(record.row.job.id);
  return record.accepting ? std::nullopt : std::optional(record.row.job);
}

Feed::Place Feed::Reserve(JobRow* row) {
  const std::lock_guard lock(mutex_);
  if (const auto found = keys_.find(row->key); found != keys_.end()) {
    const Record& known = records_.at(found->second);
    if (known.row.request_digest != row->request_digest) throw OtherRequest(known.row.job.id);
    if (known.accepting) return Place::kComing;
    row->job = known.row.job;
    return Place::kMadeBefore;
  }
  row->number = ++last_number_;
  row->job.sequence = 1;
  const std::string& id = row->job.id;
  Record& record = records_[id] = Record{};
  record.row = *row;
  record.changed_at = row->job.sequence;
  if (!row->key.empty()) keys_[row->key] = id;
  return Place::kTaken;
}

void Feed::OnceSettled(const std::string& key, std::function<void()> settled) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = keys_.find(key);
    if (found != keys_.end() && records_.at(found->second).accepting) {
      records_.at(found->second).when_settled.push_back(std::move(settled));
      return;
    }
  }
  settled();
}

void Feed::Publish(const std::string& id, const std::function<void(JobSnapshot)>& first) {
  std::vector<std::function<void()>> settled;
  JobSnapshot job;
  {
    const std::lock_guard lock(mutex_);
    Record& record = records_.at(id);
    record.accepting = false;
    Enrol(record);
    settled.swap(record.when_settled);
    job = record.row.job;
  }
  first(std::move(job));
  for (const auto& tell : settled) tell();
}

void Feed::Abandon(const std::string& id) {
  std::vector<std::function<void()>> settled;
  {
    const std::lock_guard lock(mutex_);
    const auto found = records_.find(id);
    settled.swap(found->second.when_settled);
    keys_.erase(found->second.row.key);
    records_.erase(found);
  }
  for (const auto& tell : settled) tell();
}

void Feed::Restore(JobRow row, std::chrono::microseconds age) {
  const std::lock_guard lock(mutex_);
  const std::string id = row.job.id;
  Record& record = records_[id];
  record.accepting = false;
  last_number_ = std::max(last_number_, row.number);
  if (!row.key.empty()) keys_[row.key] = id;
  record.row = std::move(row);
  record.changed_at = record.row.job.sequence;
  Enrol(record);
  if (!IsTerminal(record.row.job.state)) return;
  for (const ArtifactInfo& info : record.row.job.artifacts) {
    record.Add({info, nullptr, nullptr});
    result_bytes_ += info.size_bytes;
  }
  record.made_results = record.row.job.state == JobState::kSucceeded;
  End(id, &record, age);
}

// ---- reading

std::optional<JobSnapshot> Feed::Get(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const Record* record = Find(id);
  return record ? std::optional(record->row.job) : std::nullopt;
}

std::optional<JobSnapshot> Feed::After(const std::string& id, uint64_t sequence) const {
  const std::lock_guard lock(mutex_);
  const Record* record = Find(id);
  return record ? record->events.After(sequence, record->row.job) : std::nullopt;
}

std::shared_ptr<void> Feed::Watch(const std::string& id, std::function<void()> wake) {
  auto watcher = std::make_shared<Watcher>(Watcher{std::move(wake)});
  const std::lock_guard lock(mutex_);
  if (Record* record = Find(id)) {
    record->watchers.push_back(watcher);
    if (record->listed) used_.insert(id);
    if (record->row.job.state == JobState::kQueued) watched_waiting_.insert(id);
  }
  return watcher;
}

std::vector<std::string> Feed::WatchedWaiting(const std::string& after, size_t most) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> ids;
  for (auto it = watched_waiting_.upper_bound(after); it != watched_waiting_.end(); ++it) {
    if (ids.size() == most) break;
    ids.push_back(*it);
  }
  return ids;
}

uint64_t Feed::RequireEnded(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const Record* record = Find(id);
  if (!record) throw NoJob(id);
  if (IsTerminal(record->row.job.state)) return record->row.number;
  throw Error(StatusCode::kFailedPrecondition,
              "job '" + id + "' is " + std::string(JobStateName(record->row.job.state)) +
                  "; only a job that has ended can be deleted",
              "job_id", "JOB_NOT_FINISHED");
}

// ---- changing

std::optional<JobSnapshot> Feed::Update(const std::string& id, const Change& change,
                                        const Keep& keep) {
  return Apply(id, change, keep, Way::kForward);
}

std::vector<JobStore::Started> Feed::StartAll(const std::vector<std::string>& ids,
                                              const Keep& keep) {
  std::set<std::string> begun;
  const auto begin = [&](JobSnapshot& next) {
    begun.insert(next.id);
    ++next.attempt;
    next.state = JobState::kRunning;
    if (!next.started_at) next.started_at = std::chrono::system_clock::now();
  };
  std::vector<JobStore::Started> started;
  std::vector<std::optional<JobSnapshot>> jobs;
  if (const auto error = Caught([&] { jobs = ApplyAll(ids, begin, keep, Way::kForward); })) {
    if (ids.size() == 1 || error->reason() == "DISK") {
      return std::vector<JobStore::Started>(ids.size(), *error);
    }
    // What is wrong with one of them is not the others' fault.
    for (const std::string& id : ids) started.push_back(StartAll({id}, keep).front());
    return started;
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!jobs[i]) {
      started.emplace_back(NoJob(ids[i]));
    } else if (begun.contains(ids[i])) {
      started.emplace_back(jobs[i]->attempt);
    } else {
      started.emplace_back(Error(StatusCode::kFailedPrecondition,
                                 "job '" + ids[i] + "' has already ended", "job_id",
                                 "JOB_FINISHED"));
    }
  }
  return started;
}

void Feed::Interrupt(const std::string& id, const Keep& keep) {
  const auto back = [](JobSnapshot& job) {
    if (job.state != JobState::kRunning) return;
    job.state = JobState::kQueued;
    job.stage = JobStage::kNone;
    job.eta_seconds.reset();
  };
  Apply(id, back, keep, Way::kBackToQueue);
}

std::optional<JobSnapshot> Feed::Apply(const std::string& id, const Change& change,
                                       const Keep& keep, Way way) {
  return ApplyAll({id}, change, keep, way).front();
}

std::vector<std::optional<JobSnapshot>> Feed::ApplyAll(const std::vector<std::string>& ids,
                                                       const Change& change, const Keep& keep,
                                                       Way way) {
  std::unique_lock lock(mutex_);
  std::vector<std::optional<JobSnapshot>> after(ids.size());
  std::vector<size_t> changed;
  std::vector<JobRow> rows;  // of what is to be durable first
  bool kept = true;
  try {
    for (size_t i = 0; i < ids.size(); ++i) {
      Record* record = AwaitUnchanging(ids[i], &lock);
      if (!record) continue;
      const JobSnapshot& before = record->row.job;
      after[i] = record->next ? *record->next : before;
      if (record->next || IsTerminal(before.state)) continue;
      JobSnapshot& next = *after[i];
      change(next);
      if (way == Way::kForward) RequireForward(before, next.state);
      next.sequence = before.sequence + 1;
      changed.push_back(i);
      const bool durable = next.state != before.state || next.attempt != before.attempt ||
                           next.asked != before.asked;
      if (!keep || !durable) continue;
      rows.push_back(record->row);
      rows.back().job = next;
      record->next = std::make_unique<JobSnapshot>(next);
    }
    if (!rows.empty()) {
      lock.unlock();
      kept = keep(rows);
      lock.lock();
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    for (const JobRow& row : rows) Find(row.job.id)->next.reset();
    settled_.notify_all();
    throw;
  }
  if (!kept) {
    // They may have been settled, and even forgotten, before this thread came back.
    for (const JobRow& row : rows) {
      if (Record* record = Find(row.job.id)) record->held = record->next != nullptr;
    }
    settled_.notify_all();
    return after;
  }
  Woken woken;
  for (const size_t i : changed) {
    Record* record = Find(ids[i]);
    std::ranges::move(Show(record, *after[i]), std::back_inserter(woken));
    if (IsTerminal(after[i]->state)) End(ids[i], record);  // which may forget it
  }
  lock.unlock();
  for (const auto& watcher : woken) watcher->wake();
  return after;
}

// The record once no change of it is under way; null where there is none. One that is held counts
// as done: its `next` is set.
Feed::Record* Feed::AwaitUnchanging(const std::string& id, std::unique_lock<std::mutex>* lock) {
  for (;;) {
    Record* record = Find(id);
    if (!record || !record->next || record->held) return record;
    settled_.wait(*lock);
  }
}

Feed::Woken Feed::Show(Record* record, JobSnapshot next) {
  Strike(*record);
  record->row.job.sequence = record->changed_at;
  record->events.Add(record->row.job);
  record->row.job = std::move(next);
  record->changed_at = record->row.job.sequence;
  Enrol(*record);
  record->next.reset();
  record->held = false;
  settled_.notify_all();
  return LiveWatchers(record);
}

// Forgets those that have gone.
Feed::Woken Feed::LiveWatchers(Record* record) {
  Woken woken;
  std::erase_if(record->watchers, [&](const std::weak_ptr<Watcher>& weak) {
    auto watcher = weak.lock();
    if (watcher) woken.push_back(std::move(watcher));
    return weak.expired();
  });
  const JobSnapshot& job = record->row.job;
  if (woken.empty() || job.state != JobState::kQueued) {
    watched_waiting_.erase(job.id);
  } else {
    watched_waiting_.insert(job.id);
  }
  return woken;
}

uint64_t Feed::Touch(const std::string& id) {
  std::unique_lock lock(mutex_);
  Record* record = Find(id);
  // A change that is under way wakes them by itself.
  if (!record || record->next) return 0;
  const JobState state = record->row.job.state;
  if (state != JobState::kQueued && state != JobState::kSuspended) return 0;
  const uint64_t sequence = ++record->row.job.sequence;
  const Woken woken = LiveWatchers(record);
  lock.unlock();
  for (const auto& watcher : woken) watcher->wake();
  return sequence;
}

void Feed::Settle(const std::string& id) {
  std::unique_lock lock(mutex_);
  Record* record = Find(id);
  if (!record || !record->next) return;
  const Woken woken = Show(record, *record->next);
  if (IsTerminal(record->row.job.state)) End(id, record);
  lock.unlock();
  for (const auto& watcher : woken) watcher->wake();
}

}  // namespace denoised
