#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <utility>

#include "runtime/caught.h"
#include "runtime/job_store.h"
#include "runtime/log.h"
#include "runtime/store/checkpoints.h"
#include "runtime/store/control_book.h"
#include "runtime/store/disk_full.h"
#include "runtime/store/feed.h"
#include "runtime/store/file_artifact.h"
#include "runtime/store/ledger.h"
#include "runtime/store/memory_artifact.h"
#include "runtime/store/request_row.h"
#include "runtime/store/state_folder.h"
#include "runtime/ticker.h"

namespace denoised {
namespace {

using SystemClock = std::chrono::system_clock;
using SteadyClock = std::chrono::steady_clock;

// Progress does not touch the disk, so a new life does not know how far its job's sequence had
// come: each life begins this much further than the one before it, which no job's events between
// two changes of state reach, also where the disk did not take that one's start.
constexpr uint64_t kSequencesOfALife = uint64_t{1} << 20;

// What a request takes on disk, about.
uint64_t BytesOf(const GenerationRequest& request) {
  return request.prompt.size() + (request.latents ? request.latents->data.size() : 0);
}

// By the numbers of their ends. Those that have none ended before all others; among them there is
// but the time of day.
auto PlaceAmongEnded(const JobRow& row) {
  return std::tuple(row.end_number, row.end_number == 0 ? row.job.finished_at : std::nullopt,
                    row.number);
}

// `wall`: what a row that does not know better says of the moment.
std::chrono::microseconds AgeOf(const std::optional<PastMoment>& moment,
                                std::optional<SystemClock::time_point> wall,
                                const ClockReading& now) {
  return denoised::AgeOf(moment.value_or(PastMoment{"", {}, wall.value_or(now.wall)}), now);
}

class DurableJobStore : public JobStore {
 public:
  DurableJobStore(const StoreOptions& options, Logger* logger)
      : keep_results_(options.keep_results),
        hooks_(options.hooks),
        folder_(options.state_dir, options.hooks),
        feed_(DurableLimits(options), [this] { return Now().steady; }),
        control_(&ledger_, options.hooks),
        checkpoints_(&folder_, logger),
        ledger_(Load(logger), options.hooks, logger) {
    Requeue();
    Sweep(Feed::Look::kAll);
    sweeper_.emplace(options.sweep_every, [this] { Sweep(Feed::Look::kAll); });
  }

  bool durable() const override { return true; }

  void Accept(const JobSnapshot& job, const GenerationRequest& request,
              std::function<void(Added)> done) override;
  std::optional<JobSnapshot> MadeBefore(const GenerationRequest& request) const override {
    if (request.idempotency_key.empty()) return std::nullopt;
    return feed_.MadeBefore(request.idempotency_key, RequestDigest(request));
  }
  std::vector<AcceptedJob> Recover() override;
  std::vector<Started> StartAll(const std::vector<std::string>& ids) override {
    return feed_.StartAll(ids, Keep("start"));
  }
  void Interrupt(const std::string& id) override;
  void NoteStop() override { folder_.NoteStop(); }
  void NoteBlame(const std::optional<std::vector<std::string>>& ids) override {
    folder_.NoteBlame(ids);
  }
  void Checkpoint(const std::string& id, int64_t step, std::string bytes) override;
  std::optional<std::pair<int64_t, std::string>> ReadCheckpoint(const std::string& id) override;

  std::optional<JobSnapshot> Get(const std::string& id) const override { return feed_.Get(id); }
  JobPage List(std::optional<JobState> state, size_t page_size,
               const std::string& page_token) const override {
    return feed_.List(state, page_size, page_token);
  }
  std::optional<JobSnapshot> Update(const std::string& id,
                                    const std::function<void(JobSnapshot&)>& change) override;

  void PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) override;
  std::shared_ptr<const Artifact> GetArtifact(const std::string& id,
                                              ArtifactFormat format) const override;
  void Delete(const std::string& id) override;

  void MarkFetched(const std::string& id) override { feed_.MarkFetched(id); }
  int64_t CountUnfetched(std::chrono::steady_clock::duration age) const override {
    return feed_.CountUnfetched(age);
  }
  // Results take no memory here.
  size_t kept_bytes() const override { return feed_.row_bytes(); }
  size_t forgettable_bytes() const override { return 0; }
  void MakeRoom(size_t) override {}

  std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake) override {
    return feed_.Watch(id, std::move(wake));
  }
  std::vector<std::string> WatchedWaiting(const std::string& after, size_t most) const override {
    return feed_.WatchedWaiting(after, most);
  }
  uint64_t Touch(const std::string& id) override { return feed_.Touch(id); }
  std::optional<JobSnapshot> After(const std::string& id, uint64_t sequence) const override {
    return feed_.After(id, sequence);
  }
  ControlStore& control() override { return control_; }
  std::optional<std::string> WhyNotReady() const override {
    auto why = folder_.WhyNoRoom(0);
    return why ? why : ledger_.trouble();
  }

 private:
  LedgerFile Load(Logger* logger);
  void RemoveUnknownFiles(const std::set<std::string>& quarantined);
  void Requeue();
  std::set<std::string> Crashed() const;
  Feed::Keep Keep(std::string verb);
  ClockReading Now() const { return ReadClocks(hooks_); }
  bool IsOpen(const std::string& id) const;  // as readers see it
  void Settled(const std::string& id);
  void Sweep(Feed::Look look);
  void RemoveFiles(const std::string& id) const;

  const std::chrono::seconds keep_results_;
  StoreHooks* const hooks_;
  StateFolder folder_;
  std::vector<StoredJob> loaded_;  // until the constructor ends, then those that had not ended
  Feed feed_;
  std::atomic<uint64_t> last_end_{0};
  ControlBook control_;
  Checkpoints checkpoints_;
  Ledger ledger_;                  // after those that its thread calls back until it ends
  std::optional<Ticker> sweeper_;  // last
};

// ---- at start

LedgerFile DurableJobStore::Load(Logger* logger) {
  LedgerFile file(folder_.ledger(), logger);
  loaded_ = file.ReadJobs(Now());
  RemoveUnknownFiles(file.QuarantinedIds());
  control_.Load(file);
  return file;
}

// Only what an ended job lists is whole; a job that begins again writes its results anew. What is
// listed and not there was let go of.
void DurableJobStore::RemoveUnknownFiles(const std::set<std::string>& quarantined) {
  const std::vector<std::string> names = folder_.artifacts().Names();
  const std::set<std::string> there(names.begin(), names.end());
  std::set<std::string> listed, waiting;
  for (StoredJob& stored : loaded_) {
    JobSnapshot& job = stored.row.job;
    if (!IsTerminal(job.state)) waiting.insert(job.id);
    if (!IsTerminal(job.state)) continue;
    std::erase_if(job.artifacts, [&](const ArtifactInfo& info) {
      return !there.contains(FileName(job.id, info.format));
    });
    for (const ArtifactInfo& info : job.artifacts) listed.insert(FileName(job.id, info.format));
  }
  for (const std::string& name : names) {
    const bool kept = listed.contains(name) || quarantined.contains(name.substr(0, name.find('.')));
    if (!kept || name.ends_with(".part")) folder_.artifacts().Remove(name);
  }
  checkpoints_.KeepOnly(waiting);
}

// Jobs that may have ended the last server: those that it blamed itself, or else those that it ran,
// where nobody asked it to stop, and among them the one that had done so before, where there was
// one: it ran apart from the others.
std::set<std::string> DurableJobStore::Crashed() const {
  if (folder_.last().blamed) return *folder_.last().blamed;
  std::set<std::string> crashed, again;
  if (folder_.last().stop) return crashed;
  for (const StoredJob& stored : loaded_) {
    const std::string& id = stored.row.job.id;
    if (stored.row.job.state != JobState::kRunning || folder_.last().ids.contains(id)) continue;
    (stored.row.crashes > 0 ? again : crashed).insert(id);
  }
  return again.empty() ? crashed : again;
}

// Ended jobs by their ends, then those that go on.
void DurableJobStore::Requeue() {
  const auto ended =
      std::stable_partition(loaded_.begin(), loaded_.end(),
                            [](const StoredJob& job) { return IsTerminal(job.row.job.state); });
  std::sort(loaded_.begin(), ended, [](const StoredJob& a, const StoredJob& b) {
    return PlaceAmongEnded(a.row) < PlaceAmongEnded(b.row);
  });
  const ClockReading now = Now();
  for (auto job = loaded_.begin(); job != ended; ++job) {
    last_end_ = std::max<uint64_t>(last_end_, job->row.end_number);
    const auto age = AgeOf(job->row.ended, job->row.job.finished_at, now);
    feed_.Restore(std::move(job->row), age);
  }
  loaded_.erase(loaded_.begin(), ended);
  const std::set<std::string> crashed = Crashed();
  std::vector<JobRow> rows;
  for (StoredJob& stored : loaded_) {
    JobSnapshot& job = stored.row.job;
    job.sequence += kSequencesOfALife * folder_.life();
    job.step = 0;
    job.stage = JobStage::kNone;
    job.eta_seconds.reset();
    job.stage_seconds.clear();
    job.artifacts.clear();
    if (job.state == JobState::kRunning) job.state = JobState::kQueued;
    if (crashed.contains(job.id)) ++stored.row.crashes;
    if (job.asked == JobState::kSuspended) {
      job.state = JobState::kSuspended;
      job.asked.reset();
    }
    rows.push_back(stored.row);
  }
  if (rows.empty() || ledger_.Recovered(rows, [this] { folder_.ForgetLast(); })) {
    folder_.ForgetLast();
  }
  for (JobRow& row : rows) feed_.Restore(std::move(row));
}

// In order of arrival, whatever the clocks say: nobody has waited longer than who came before.
std::vector<AcceptedJob> DurableJobStore::Recover() {
  std::vector<AcceptedJob> jobs;
  const ClockReading now = Now();
  auto earliest = SteadyClock::time_point::min();
  for (StoredJob& stored : std::exchange(loaded_, {})) {
    AcceptedJob job;
    job.snapshot = stored.row.job;
    job.request = *std::move(stored.request);
    job.request.idempotency_key = stored.row.key;
    job.crashes = stored.row.crashes;
    earliest =
        std::max(earliest, now.steady - AgeOf(stored.row.accepted, job.snapshot.created_at, now));
    job.queued_at = earliest;
    if (const auto checkpoint = checkpoints_.Read(job.snapshot.id)) {
      job.checkpoint_step = checkpoint->step;
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

// ---- verbs

void DurableJobStore::Accept(const JobSnapshot& job, const GenerationRequest& request,
                             std::function<void(Added)> done) {
  JobRow row;
  auto place = Feed::Place::kMadeBefore;
  const auto refused = Caught([&] {
    if (!IsPlainId(job.id)) throw InvalidField("id", "letters, digits, '_' and '-'");
    row = NewRow(job, request);
    row.accepted = MomentOf(Now());
    // A retry of what is kept already needs no room, so this comes first.
    place = feed_.Reserve(&row);
    if (place != Feed::Place::kTaken) return;
    if (const auto why = folder_.WhyNoRoom(BytesOf(request))) throw DiskFull(*why);
    ledger_.Accept(row, request, [this, id = job.id, done](const std::optional<Error>& error) {
      if (!error) return feed_.Publish(id, Made(done));
      feed_.Abandon(id);
      done(*error);
    });
  });
  if (refused && place == Feed::Place::kTaken) feed_.Abandon(job.id);
  if (refused) return done(*refused);
  if (place == Feed::Place::kMadeBefore) return done(std::pair(std::move(row.job), false));
  if (place == Feed::Place::kTaken) return;
  feed_.OnceSettled(row.key, [this, job, request, done] { Accept(job, request, done); });
}

Feed::Keep DurableJobStore::Keep(std::string verb) {
  return [this, verb = std::move(verb)](const std::vector<JobRow>& rows) {
    if (IsTerminal(rows.front().job.state)) {  // it is one then
      JobRow ended = rows.front();
      ended.ended = MomentOf(Now());
      ended.end_number = ++last_end_;
      return ledger_.Finish(ended, [this, id = ended.job.id] {
        feed_.Settle(id);
        Settled(id);
      });
    }
    ledger_.Change(verb, rows);
    return true;
  };
}

std::optional<JobSnapshot> DurableJobStore::Update(
    const std::string& id, const std::function<void(JobSnapshot&)>& change) {
  bool applied = false;
  auto after = feed_.Update(
      id,
      [&](JobSnapshot& job) {
        applied = true;
        change(job);
      },
      Keep("change"));
  if (applied && after && IsTerminal(after->state) && !IsOpen(id)) Settled(id);
  return after;
}

bool DurableJobStore::IsOpen(const std::string& id) const {
  const auto job = feed_.Get(id);
  return job && !IsTerminal(job->state);
}

// The job's end is on disk: its state is needed no more, nor are results of one that failed, and
// older jobs may be too many.
void DurableJobStore::Settled(const std::string& id) {
  checkpoints_.Drop(id);
  if (const auto job = feed_.Get(id); job && job->state != JobState::kSucceeded) RemoveFiles(id);
  Sweep(Feed::Look::kOldest);
}

void DurableJobStore::Sweep(Feed::Look look) {
  feed_.ForgetEndedBefore(Now().steady - keep_results_, look);
  const std::vector<Feed::Forgotten> forgotten = feed_.TakeForgotten();
  if (forgotten.empty()) return;
  std::vector<uint64_t> numbers;
  for (const Feed::Forgotten& job : forgotten) {
    // The next start sees by the file that is not there what became of it.
    job.results_alone ? RemoveFiles(job.id) : numbers.push_back(job.number);
  }
  if (numbers.empty()) return;
  ledger_.ForgetLater(std::move(numbers), [this, forgotten] {
    for (const Feed::Forgotten& job : forgotten) RemoveFiles(job.id);
  });
}

void DurableJobStore::RemoveFiles(const std::string& id) const {
  for (int format = 0; format <= static_cast<int>(ArtifactFormat::kSafetensors); ++format) {
    folder_.artifacts().Remove(FileName(id, static_cast<ArtifactFormat>(format)));
  }
}

void DurableJobStore::Interrupt(const std::string& id) {
  checkpoints_.Flush(id);
  try {
    feed_.Interrupt(id, Keep("change"));
  } catch (const Error& error) {
    folder_.Note(id);  // no crash, all the same
    throw;
  }
}

void DurableJobStore::Checkpoint(const std::string& id, int64_t step, std::string bytes) {
  if (IsOpen(id)) checkpoints_.Put(id, {step, std::move(bytes)});
  if (!IsOpen(id)) checkpoints_.Drop(id);  // it may have ended meanwhile
}

std::optional<std::pair<int64_t, std::string>> DurableJobStore::ReadCheckpoint(
    const std::string& id) {
  auto checkpoint = checkpoints_.Read(id);
  if (!checkpoint) return std::nullopt;
  return std::pair(checkpoint->step, std::move(checkpoint->bytes));
}

// ---- results

void DurableJobStore::PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) {
  if (!feed_.Get(id)) return;
  info = Completed(std::move(info), bytes);
  folder_.RequireRoom(bytes.size());
  folder_.artifacts().Write(FileName(id, info.format), {bytes});
  feed_.AddResult(id, info, nullptr);
}

std::shared_ptr<const Artifact> DurableJobStore::GetArtifact(const std::string& id,
                                                             ArtifactFormat format) const {
  const auto result = feed_.FindResult(id, format);
  if (!result) return nullptr;
  auto file = folder_.artifacts().Open(FileName(id, format));
  if (!file || SizeOf(*file) != result->info.size_bytes) return nullptr;
  return WhileRead(std::make_shared<FileArtifact>(result->info, std::move(*file)), result->reading);
}

void DurableJobStore::Delete(const std::string& id) {
  ledger_.Forget(feed_.RequireEnded(id));
  feed_.Forget(id);
  RemoveFiles(id);
}

}  // namespace

std::unique_ptr<JobStore> OpenJobStore(const StoreOptions& options, Logger* logger) {
  return std::make_unique<DurableJobStore>(options, logger);
}

}  // namespace denoised
