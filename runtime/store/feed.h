// The latest view of every job, in memory: what readers and watchers see of either store, and which
// ended jobs are old enough to be forgotten. Torch-free, thread-safe.
//
// No call waits for a disk under the feed's lock: a change that must be durable first is made on a
// copy, kept without the lock, and seen afterwards; who changes the same job meanwhile waits for
// that, who reads it sees what it was.
#ifndef DENOISED_RUNTIME_STORE_FEED_H_
#define DENOISED_RUNTIME_STORE_FEED_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/job_store.h"
#include "runtime/store/event_ring.h"
#include "runtime/store/job_row.h"

namespace denoised {

class Feed {
 public:
  // Makes changes of state, attempt or wish durable, all or none, without the lock. True: they are.
  // False: they will be, and Settle() of each follows then. What it throws undoes them.
  using Keep = std::function<bool(const std::vector<JobRow>& after)>;
  using Change = std::function<void(JobSnapshot&)>;
  using Time = std::chrono::steady_clock::time_point;
  using Clock = std::function<Time()>;

  // What is kept of ended jobs: of those that made results and of those that made none each so many
  // and, of memory without results, so many bytes; and so many bytes of results. Where they are too
  // many the oldest jobs go, or, with `jobs_outlive_results`, their results alone.
  struct Limits {
    size_t max_finished;
    uint64_t max_result_bytes;
    uint64_t max_row_bytes = UINT64_MAX;
    bool jobs_outlive_results = false;
  };
  // By `clock` jobs age, whatever the time of day is set to.
  explicit Feed(const Limits& limits, Clock clock = std::chrono::steady_clock::now)
      : limits_(limits), clock_(std::move(clock)) {}

  // kTaken: a place for a new job that nobody sees before Publish, with its number and sequence.
  // kMadeBefore: the row has the job that its key made. kComing: a job of its key has such a place.
  // Throws ALREADY_EXISTS where the key's request was another one.
  enum class Place : uint8_t { kTaken, kMadeBefore, kComing };
  Place Reserve(JobRow* row);
  // `settled` runs once the job of this key that was kComing is published or abandoned, on the
  // thread that does so, or at once where that has happened.
  void OnceSettled(const std::string& key, std::function<void()> settled);
  std::optional<JobSnapshot> MadeBefore(const std::string& key, const std::string& digest) const;
  // The job is seen from now on; `first` hears of it before any of OnceSettled.
  void Publish(const std::string& id, const std::function<void(JobSnapshot)>& first);
  void Abandon(const std::string& id);
  // A job of an earlier life. Ended ones come in the order in which they ended, and with the age of
  // their end.
  void Restore(JobRow row, std::chrono::microseconds age = {});

  std::optional<JobSnapshot> Get(const std::string& id) const;
  JobPage List(std::optional<JobState> state, size_t page_size,
               const std::string& page_token) const;
  std::optional<JobSnapshot> After(const std::string& id, uint64_t sequence) const;
  std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake);
  // As JobStore says.
  std::vector<std::string> WatchedWaiting(const std::string& after, size_t most) const;
  uint64_t Touch(const std::string& id);

  // JobStore::Update. Without `keep` nothing is made durable.
  std::optional<JobSnapshot> Update(const std::string& id, const Change& change, const Keep& keep);
  std::vector<JobStore::Started> StartAll(const std::vector<std::string>& ids, const Keep& keep);
  void Interrupt(const std::string& id, const Keep& keep);
  // The change that `keep` answered with false is durable now.
  void Settle(const std::string& id);

  // A result that is kept: here, or on disk, where `artifact` is null.
  void AddResult(const std::string& id, const ArtifactInfo& info,
                 std::shared_ptr<const Artifact> artifact);
  // Until `reading` is gone the job counts as read.
  struct Result {
    ArtifactInfo info;
    std::shared_ptr<const Artifact> artifact;
    std::shared_ptr<const void> reading;
  };
  std::optional<Result> FindResult(const std::string& id, ArtifactFormat format) const;
  void MarkFetched(const std::string& id);
  int64_t CountUnfetched(std::chrono::steady_clock::duration age) const;

  uint64_t result_bytes() const;
  uint64_t row_bytes() const;  // of memory, that ended jobs take without their results, about
  uint64_t forgettable_bytes() const;
  void MakeRoom(uint64_t bytes);
  // Forgets what ended before `moment` and is not in use. Jobs end in the order of time: kOldest
  // looks no further than the first that is young.
  enum class Look : uint8_t { kOldest, kAll };
  void ForgetEndedBefore(Time moment, Look look);
  // Number of an ended job; throws as JobStore::Delete.
  uint64_t RequireEnded(const std::string& id) const;
  void Forget(const std::string& id);

  // Jobs that were forgotten for their age or number since the last call, or whose results were.
  struct Forgotten {
    std::string id;
    uint64_t number = 0;
    bool results_alone = false;
  };
  std::vector<Forgotten> TakeForgotten();

 private:
  struct Watcher {
    std::function<void()> wake;
  };
  struct Record {
    JobRow row;
    bool accepting = true;                            // reserved, not published
    std::vector<std::function<void()>> when_settled;  // while `accepting`
    std::unique_ptr<const JobSnapshot> next;          // a change on its way to the disk
    bool held = false;  // ... which takes its time: `next` is as good as done
    EventRing events;
    uint64_t changed_at = 0;  // sequence of the last change, whatever was touched since
    std::vector<std::weak_ptr<Watcher>> watchers;
    std::map<ArtifactFormat, Result> results;  // their `reading` unset
    std::shared_ptr<const void> reading;       // of those that it has or had
    Time ended_at;
    bool fetched = false;
    bool listed = false;  // in with_results_
    bool made_results = false;
    uint64_t row_bytes = 0;  // of memory, once it has ended

    bool watched() const;
    bool read() const { return reading.use_count() > 1; }
    uint64_t bytes() const;
    void Add(Result result);
  };
  using Order = std::map<uint64_t, const Record*>;  // by number
  using Woken = std::vector<std::shared_ptr<Watcher>>;
  enum class Way : uint8_t { kForward, kBackToQueue };
  // Which jobs ForgetOldest may take.
  enum class Which : uint8_t { kFetched, kNotInUse, kAny };

  // All below under mutex_.
  const Record* Find(const std::string& id) const;  // not those that are reserved
  Record* Find(const std::string& id);
  std::optional<JobSnapshot> Apply(const std::string& id, const Change& change, const Keep& keep,
                                   Way way);
  // The same change of several, kept as one: what each is afterwards. Several at once, of distinct
  // ids, come from one thread at a time, and none of them ends by it.
  std::vector<std::optional<JobSnapshot>> ApplyAll(const std::vector<std::string>& ids,
                                                   const Change& change, const Keep& keep, Way way);
  // Into and out of the lists of jobs; out while its state is the one of before.
  void Enrol(const Record& record);
  void Strike(const Record& record);
  const Order& OrderOf(JobState state) const;
  Record* AwaitUnchanging(const std::string& id, std::unique_lock<std::mutex>* lock);
  Woken Show(Record* record, JobSnapshot next);
  Woken LiveWatchers(Record* record);
  void End(const std::string& id, Record* record, std::chrono::microseconds age = {});
  void ForgetOld();
  static bool Takes(const Record& record, Which which);
  bool TooMany(size_t jobs, uint64_t row_bytes) const;
  using Ended = std::deque<std::string>;
  // The oldest such job of `ended`; the newest of all that have results is none.
  Ended::iterator Oldest(Ended* ended, Which which);
  // Forgets it, or its results. False where there is none.
  bool ForgetOldest(Ended* ended, Which which);
  bool LetGoOfOldestResults(Which which);
  void Erase(const std::string& id);

  const Limits limits_;
  const Clock clock_;
  mutable std::mutex mutex_;
  std::condition_variable settled_;  // a record was changed or held
  std::unordered_map<std::string, Record> records_;
  Order order_;                                        // all but those that are reserved
  std::map<JobState, Order> of_state_;                 // likewise
  std::unordered_map<std::string, std::string> keys_;  // of idempotency -> id
  // Ended jobs, oldest first: those that have results, had some, never had any.
  Ended with_results_, emptied_, without_results_;
  uint64_t listed_bytes_ = 0;                          // of the results of with_results_
  uint64_t made_row_bytes_ = 0, other_row_bytes_ = 0;  // of jobs that made results, and of others
  mutable std::set<std::string> used_;     // of with_results_, all that may be watched or read
  std::set<std::string> watched_waiting_;  // QUEUED jobs, all that may be watched
  Ended pictured_;                         // ended jobs that still have a preview, oldest first
  Ended replayed_;                         // and those that still have their states of before
  std::vector<Forgotten> forgotten_;
  uint64_t result_bytes_ = 0;
  uint64_t last_number_ = 0;
};

// What publishing a new job tells a client of Accept.
inline std::function<void(JobSnapshot)> Made(std::function<void(JobStore::Added)> done) {
  return [done = std::move(done)](JobSnapshot job) { done(std::pair(std::move(job), true)); };
}

// Of a store on disk: results go by age and size alone, and what is known of their jobs, keys among
// it, by age; but for the bounds that keep this process small.
Feed::Limits DurableLimits(const StoreOptions& options);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_FEED_H_
