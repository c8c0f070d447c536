#include <algorithm>
#include <deque>
#include <list>
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
  JobSnapshot job;
  uint64_t number = 0;  // order of arrival
  std::map<ArtifactFormat, std::shared_ptr<const Artifact>> artifacts;
  std::vector<std::weak_ptr<Watcher>> watchers;
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
  void ForgetOld();
  void Forget(const std::string& id);

  const size_t max_finished_, max_artifact_bytes_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Record> records_;
  std::map<uint64_t, std::string> order_;  // number -> id
  std::deque<std::string> finished_;       // oldest first
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
  uint64_t last_shown = 0;
  for (auto it = std::make_reverse_iterator(order_.lower_bound(before)); it != order_.rend();
       ++it) {
    const JobSnapshot& job = records_.at(it->second).job;
    if (state && job.state != *state) continue;
    if (page.jobs.size() == page_size) {
      page.next_page_token = std::to_string(last_shown);
      break;
    }
    page.jobs.push_back(job);
    last_shown = it->first;
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
    if (IsTerminal(after->state)) {
      finished_.push_back(id);
      ForgetOld();
    }
  }
  for (const auto& watcher : awake) watcher->wake();
  return after;
}

void MemoryJobStore::ForgetOld() {
  while (finished_.size() > 1 &&
         (finished_.size() > max_finished_ || artifact_bytes_ > max_artifact_bytes_)) {
    Forget(finished_.front());
    finished_.pop_front();
  }
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
