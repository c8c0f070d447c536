#include <algorithm>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

#include "runtime/job_store.h"

namespace denoised {
namespace {

struct Watcher {
  std::function<void()> wake;
};

struct Record {
  bool watched() const {
    return std::any_of(watchers.begin(), watchers.end(),
                       [](const std::weak_ptr<Watcher>& watcher) { return !watcher.expired(); });
  }
  // Somebody holds a result beside the store.
  bool read() const {
    return std::any_of(artifacts.begin(), artifacts.end(),
                       [](const auto& entry) { return entry.second.use_count() > 1; });
  }

  JobSnapshot job;
  uint64_t number = 0;  // order of arrival
  std::map<ArtifactFormat, std::shared_ptr<const Artifact>> artifacts;
  std::vector<std::weak_ptr<Watcher>> watchers;
  std::chrono::steady_clock::time_point ended_at;
  bool fetched = false;
};

class MemoryJobStore : public JobStore {
 public:
  MemoryJobStore(size_t max_finished, size_t max_artifact_bytes)
      : max_finished_(max_finished), max_artifact_bytes_(max_artifact_bytes) {}

  void Add(const JobSnapshot& job) override {
    std::lock_guard lock(mutex_);
    Record& record = records_[job.id];
    record.job = job;
    record.job.sequence = 1;
    record.number = ++last_number_;
    order_[record.number] = job.id;
  }

  std::optional<JobSnapshot> Get(const std::string& id) const override {
    std::lock_guard lock(mutex_);
    const Record* record = Find(id);
    return record ? std::optional(record->job) : std::nullopt;
  }

  JobPage List(std::optional<JobState> state, size_t page_size,
               const std::string& page_token) const override;
  std::optional<JobSnapshot> Update(const std::string& id,
                                    const std::function<void(JobSnapshot&)>& change) override;

  void AddArtifact(const std::string& id, std::shared_ptr<const Artifact> artifact) override {
    std::lock_guard lock(mutex_);
    auto found = records_.find(id);
    if (found == records_.end()) return;
    std::shared_ptr<const Artifact>& place = found->second.artifacts[artifact->info.format];
    if (place) artifact_bytes_ -= place->bytes.size();
    artifact_bytes_ += artifact->bytes.size();
    place = std::move(artifact);
  }

  std::shared_ptr<const Artifact> GetArtifact(const std::string& id,
                                              ArtifactFormat format) const override {
    std::lock_guard lock(mutex_);
    const Record* record = Find(id);
    if (!record) return nullptr;
    auto found = record->artifacts.find(format);
    return found == record->artifacts.end() ? nullptr : found->second;
  }

  void MarkFetched(const std::string& id) override {
    std::lock_guard lock(mutex_);
    auto found = records_.find(id);
    if (found != records_.end()) found->second.fetched = true;
  }

  int64_t CountUnfetched(std::chrono::steady_clock::duration age) const override;

  size_t artifact_bytes() const override {
    std::lock_guard lock(mutex_);
    return artifact_bytes_;
  }

  size_t forgettable_bytes() const override;
  void MakeRoom(size_t bytes) override;

  std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake) override {
    auto watcher = std::make_shared<Watcher>(Watcher{std::move(wake)});
    std::lock_guard lock(mutex_);
    auto found = records_.find(id);
    if (found != records_.end()) found->second.watchers.push_back(watcher);
    return watcher;
  }

 private:
  const Record* Find(const std::string& id) const {
    auto found = records_.find(id);
    return found == records_.end() ? nullptr : &found->second;
  }
  void End(const std::string& id, Record* record);
  void ForgetOld();
  // Which jobs ForgetOldest may take.
  enum class Which : uint8_t { kFetched, kNotInUse, kAny };
  bool Takes(const Record& record, Which which) const;
  // Forgets the oldest such job of `ended` but its newest. False where there is none.
  bool ForgetOldest(std::deque<std::string>* ended, Which which);
  void Forget(const std::string& id);

  const size_t max_finished_, max_artifact_bytes_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Record> records_;
  std::map<uint64_t, std::string> order_;                   // number -> id
  std::deque<std::string> with_results_, without_results_;  // ended jobs, oldest first
  size_t artifact_bytes_ = 0;
  uint64_t last_number_ = 0;
};

// A page token is the number of the last job shown, in decimal.
uint64_t ParseToken(const std::string& token) {
  if (token.empty()) return UINT64_MAX;
  const bool digits =
      std::all_of(token.begin(), token.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!digits || token.size() > 19) {
    throw InvalidField("page_token", "not a token of an earlier reply");
  }
  return std::stoull(token);
}

JobPage MemoryJobStore::List(std::optional<JobState> state, size_t page_size,
                             const std::string& page_token) const {
  const uint64_t before = ParseToken(page_token);
  if (page_size == 0) throw InvalidField("page_size", "must be at least 1");
  JobPage page;
  std::lock_guard lock(mutex_);
  for (auto it = std::make_reverse_iterator(order_.lower_bound(before)); it != order_.rend();
       ++it) {
    const JobSnapshot& job = records_.at(it->second).job;
    if (state && job.state != *state) continue;
    if (page.jobs.size() == page_size) {
      page.next_page_token = page.tokens.back();
      break;
    }
    page.jobs.push_back(job);
    page.tokens.push_back(std::to_string(it->first));
  }
  return page;
}

std::optional<JobSnapshot> MemoryJobStore::Update(const std::string& id,
                                                  const std::function<void(JobSnapshot&)>& change) {
  std::vector<std::shared_ptr<Watcher>> awake;
  std::optional<JobSnapshot> after;
  {
    std::lock_guard lock(mutex_);
    auto found = records_.find(id);
    if (found == records_.end()) return std::nullopt;
    Record& record = found->second;
    if (IsTerminal(record.job.state)) return record.job;
    change(record.job);
    ++record.job.sequence;
    after = record.job;
    std::erase_if(record.watchers, [&](const std::weak_ptr<Watcher>& weak) {
      auto watcher = weak.lock();
      if (watcher) awake.push_back(std::move(watcher));
      return weak.expired();
    });
    if (IsTerminal(after->state)) End(id, &record);
  }
  for (const auto& watcher : awake) watcher->wake();
  return after;
}

void MemoryJobStore::End(const std::string& id, Record* record) {
  record->ended_at = std::chrono::steady_clock::now();
  (record->artifacts.empty() ? without_results_ : with_results_).push_back(id);
  ForgetOld();
}

void MemoryJobStore::ForgetOld() {
  for (std::deque<std::string>* ended : {&with_results_, &without_results_}) {
    while (ended->size() > max_finished_ && ForgetOldest(ended, Which::kNotInUse)) {
    }
  }
  for (const Which which : {Which::kNotInUse, Which::kAny}) {
    while (artifact_bytes_ > max_artifact_bytes_ && ForgetOldest(&with_results_, which)) {
    }
  }
}

bool MemoryJobStore::Takes(const Record& record, Which which) const {
  if (which == Which::kAny) return true;
  if (record.watched() || record.read()) return false;
  return which == Which::kNotInUse || record.fetched;
}

size_t MemoryJobStore::forgettable_bytes() const {
  std::lock_guard lock(mutex_);
  size_t bytes = 0;
  for (const std::string& id : with_results_) {
    const Record& record = records_.at(id);
    if (&id == &with_results_.back() || !Takes(record, Which::kNotInUse)) continue;
    for (const auto& [format, artifact] : record.artifacts) bytes += artifact->bytes.size();
  }
  return bytes;
}

void MemoryJobStore::MakeRoom(size_t bytes) {
  std::lock_guard lock(mutex_);
  const size_t wanted = artifact_bytes_ > bytes ? artifact_bytes_ - bytes : 0;
  for (const Which which : {Which::kFetched, Which::kNotInUse}) {
    while (artifact_bytes_ > wanted && ForgetOldest(&with_results_, which)) {
    }
  }
}

bool MemoryJobStore::ForgetOldest(std::deque<std::string>* ended, Which which) {
  if (ended->empty()) return false;
  const auto newest = std::prev(ended->end());
  const auto oldest = std::find_if(
      ended->begin(), newest, [&](const std::string& id) { return Takes(records_.at(id), which); });
  if (oldest == newest) return false;
  Forget(*oldest);
  ended->erase(oldest);
  return true;
}

int64_t MemoryJobStore::CountUnfetched(std::chrono::steady_clock::duration age) const {
  const auto since = std::chrono::steady_clock::now() - age;
  std::lock_guard lock(mutex_);
  int64_t count = 0;
  for (auto id = with_results_.rbegin(); id != with_results_.rend(); ++id) {
    const Record& record = records_.at(*id);
    if (record.ended_at < since) break;
    count += record.job.state == JobState::kSucceeded && !record.fetched ? 1 : 0;
  }
  return count;
}

void MemoryJobStore::Forget(const std::string& id) {
  auto found = records_.find(id);
  for (const auto& [format, artifact] : found->second.artifacts) {
    artifact_bytes_ -= artifact->bytes.size();
  }
  order_.erase(found->second.number);
  records_.erase(found);
}

}  // namespace

std::unique_ptr<JobStore> MakeMemoryJobStore(size_t max_finished, size_t max_artifact_bytes) {
  return std::make_unique<MemoryJobStore>(max_finished, max_artifact_bytes);
}

}  // namespace denoised
