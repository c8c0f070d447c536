// Feed: the results of jobs, and which ended jobs are forgotten.
#include <algorithm>
#include <iterator>
#include <utility>

#include "runtime/store/feed.h"

namespace denoised {
namespace {

// Previews are there for those who watch; of ended jobs so many stay, for those who come a little
// late.
constexpr size_t kEndedPreviews = 16;
// Likewise of the states of before.
constexpr size_t kEndedReplays = 512;

// Of memory: its text is about what its parts are.
uint64_t MemoryOf(const JobRow& row) {
  constexpr uint64_t kRecord = 2048;  // what is the same for all, with its places in the lists
  return kRecord + WriteRow(row).size();
}

}  // namespace

// ---- results

void Feed::AddResult(const std::string& id, const ArtifactInfo& info,
                     std::shared_ptr<const Artifact> artifact) {
  const std::lock_guard lock(mutex_);
  Record* record = Find(id);
  if (!record) return;
  const uint64_t before = record->bytes();
  record->Add({info, std::move(artifact), nullptr});
  const uint64_t more = record->bytes() - before;
  result_bytes_ += more;
  if (record->listed) listed_bytes_ += more;
}

std::optional<Feed::Result> Feed::FindResult(const std::string& id, ArtifactFormat format) const {
  const std::lock_guard lock(mutex_);
  const Record* record = Find(id);
  if (!record) return std::nullopt;
  const auto found = record->results.find(format);
  if (found == record->results.end()) return std::nullopt;
  if (record->listed) used_.insert(id);
  return Result{found->second.info, found->second.artifact, record->reading};
}

void Feed::MarkFetched(const std::string& id) {
  const std::lock_guard lock(mutex_);
  if (Record* record = Find(id)) record->fetched = true;
}

int64_t Feed::CountUnfetched(std::chrono::steady_clock::duration age) const {
  const auto since = clock_() - age;
  const std::lock_guard lock(mutex_);
  int64_t count = 0;
  for (auto id = with_results_.rbegin(); id != with_results_.rend(); ++id) {
    const Record& record = records_.at(*id);
    if (record.ended_at < since) break;
    count += record.row.job.state == JobState::kSucceeded && !record.fetched ? 1 : 0;
  }
  return count;
}

// ---- forgetting

void Feed::End(const std::string& id, Record* record, std::chrono::microseconds age) {
  record->ended_at = clock_() - age;
  if (record->row.job.state != JobState::kSucceeded) {
    result_bytes_ -= record->bytes();
    record->results.clear();
  }
  record->listed = !record->results.empty();
  record->made_results = record->made_results || record->listed;
  (record->listed         ? with_results_
   : record->made_results ? emptied_
                          : without_results_)
      .push_back(id);
  if (record->listed) {
    listed_bytes_ += record->bytes();
    used_.insert(id);  // until somebody has looked
  }
  record->row_bytes = MemoryOf(record->row);
  (record->made_results ? made_row_bytes_ : other_row_bytes_) += record->row_bytes;
  if (record->row.job.preview) pictured_.push_back(id);
  if (pictured_.size() > kEndedPreviews) {
    if (Record* oldest = Find(pictured_.front())) oldest->row.job.preview.reset();
    pictured_.pop_front();
  }
  replayed_.push_back(id);
  if (replayed_.size() > kEndedReplays) {
    if (Record* oldest = Find(replayed_.front())) oldest->events = {};
    replayed_.pop_front();
  }
  ForgetOld();
}

bool Feed::TooMany(size_t jobs, uint64_t row_bytes) const {
  return jobs > limits_.max_finished || row_bytes > limits_.max_row_bytes;
}

void Feed::ForgetOld() {
  while (TooMany(emptied_.size() + with_results_.size(), made_row_bytes_) &&
         (ForgetOldest(&emptied_, Which::kNotInUse) ||
          ForgetOldest(&with_results_, Which::kNotInUse))) {
  }
  while (TooMany(without_results_.size(), other_row_bytes_) &&
         ForgetOldest(&without_results_, Which::kNotInUse)) {
  }
  for (const Which which : {Which::kNotInUse, Which::kAny}) {
    while (result_bytes_ > limits_.max_result_bytes && LetGoOfOldestResults(which)) {
    }
  }
}

bool Feed::Takes(const Record& record, Which which) {
  if (which == Which::kAny) return true;
  if (record.watched() || record.read()) return false;
  return which == Which::kNotInUse || record.fetched;
}

uint64_t Feed::result_bytes() const {
  const std::lock_guard lock(mutex_);
  return result_bytes_;
}

uint64_t Feed::row_bytes() const {
  const std::lock_guard lock(mutex_);
  return made_row_bytes_ + other_row_bytes_;
}

// Asked at every submit: only those are looked at that somebody may use.
uint64_t Feed::forgettable_bytes() const {
  const std::lock_guard lock(mutex_);
  if (with_results_.empty()) return 0;
  const std::string& newest = with_results_.back();
  uint64_t bytes = listed_bytes_ - records_.at(newest).bytes();
  std::erase_if(used_, [&](const std::string& id) {
    const Record& record = records_.at(id);
    if (Takes(record, Which::kNotInUse)) return true;
    if (id != newest) bytes -= record.bytes();
    return false;
  });
  return bytes;
}

void Feed::MakeRoom(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const uint64_t wanted = result_bytes_ > bytes ? result_bytes_ - bytes : 0;
  for (const Which which : {Which::kFetched, Which::kNotInUse}) {
    while (result_bytes_ > wanted && ForgetOldest(&with_results_, which)) {
    }
  }
}

Feed::Ended::iterator Feed::Oldest(Ended* ended, Which which) {
  const auto last = ended->empty() || ended == &emptied_ ? ended->end() : std::prev(ended->end());
  const auto oldest = std::find_if(
      ended->begin(), last, [&](const std::string& id) { return Takes(records_.at(id), which); });
  return oldest == last ? ended->end() : oldest;
}

bool Feed::ForgetOldest(Ended* ended, Which which) {
  const auto oldest = Oldest(ended, which);
  if (oldest == ended->end()) return false;
  forgotten_.push_back({*oldest, records_.at(*oldest).row.number});
  Erase(*oldest);
  ended->erase(oldest);
  return true;
}

bool Feed::LetGoOfOldestResults(Which which) {
  if (!limits_.jobs_outlive_results) return ForgetOldest(&with_results_, which);
  const auto oldest = Oldest(&with_results_, which);
  if (oldest == with_results_.end()) return false;
  Record& record = records_.at(*oldest);
  result_bytes_ -= record.bytes();
  listed_bytes_ -= record.bytes();
  record.listed = false;
  record.results.clear();
  record.row.job.artifacts.clear();
  used_.erase(*oldest);
  forgotten_.push_back({*oldest, record.row.number, /*results_alone=*/true});
  emptied_.push_back(std::move(*oldest));
  with_results_.erase(oldest);
  return true;
}

void Feed::ForgetEndedBefore(Time moment, Look look) {
  const std::lock_guard lock(mutex_);
  for (Ended* ended : {&with_results_, &emptied_, &without_results_}) {
    for (auto id = ended->begin(); id != ended->end();) {
      const Record& record = records_.at(*id);
      const bool old = record.ended_at < moment;
      if (!old && look == Look::kOldest) break;
      if (!old || !Takes(record, Which::kNotInUse)) {
        ++id;
        continue;
      }
      forgotten_.push_back({*id, record.row.number});
      Erase(*id);
      id = ended->erase(id);
    }
  }
}

void Feed::Forget(const std::string& id) {
  const std::lock_guard lock(mutex_);
  if (!Find(id)) return;
  for (Ended* ended : {&with_results_, &emptied_, &without_results_}) std::erase(*ended, id);
  Erase(id);
}

void Feed::Erase(const std::string& id) {
  const auto found = records_.find(id);
  const JobRow& row = found->second.row;
  const uint64_t bytes = found->second.bytes();
  result_bytes_ -= bytes;
  if (found->second.listed) listed_bytes_ -= bytes;
  (found->second.made_results ? made_row_bytes_ : other_row_bytes_) -= found->second.row_bytes;
  used_.erase(id);
  Strike(found->second);
  if (const auto key = keys_.find(row.key); key != keys_.end() && key->second == id) {
    keys_.erase(key);
  }
  records_.erase(found);
}

std::vector<Feed::Forgotten> Feed::TakeForgotten() {
  const std::lock_guard lock(mutex_);
  return std::exchange(forgotten_, {});
}

Feed::Limits DurableLimits(const StoreOptions& options) {
  Feed::Limits limits{options.max_finished, options.max_artifact_bytes};
  limits.jobs_outlive_results = true;
  if (limits.max_finished > 0) return limits;
  limits.max_finished = SIZE_MAX;
  limits.max_row_bytes = options.max_row_bytes / 2;  // of each kind
  return limits;
}

}  // namespace denoised
