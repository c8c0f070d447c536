// Where jobs live. Torch-free. Two of one face: in memory, where they end with the process, and
// under a state folder, where what was accepted outlives a kill (runtime/store/README.md).
#ifndef DENOISED_RUNTIME_JOB_STORE_H_
#define DENOISED_RUNTIME_JOB_STORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/job.h"
#include "runtime/waited.h"

namespace denoised {

class ControlStore;
class Logger;
class StoreHooks;

// An encoded result, in memory or on disk. Immutable, and readable for as long as it is held, also
// when its job was forgotten meanwhile. Any thread.
class Artifact {
 public:
  virtual ~Artifact() = default;

  const ArtifactInfo& info() const { return info_; }
  uint64_t size() const { return info_.size_bytes; }
  // Bytes that were there to read: fewer than `count` at the end. Throws DATA_LOSS where the disk
  // does not give what was written.
  virtual size_t ReadAt(uint64_t offset, char* to, size_t count) const = 0;

 protected:
  explicit Artifact(ArtifactInfo info) : info_(std::move(info)) {}

 private:
  const ArtifactInfo info_;
};
// All of it at once, for what is small or goes into a file.
std::string ReadAll(const Artifact& artifact);

struct JobPage {
  std::vector<JobSnapshot> jobs;    // newest first
  std::vector<std::string> tokens;  // tokens[i] asks for what comes after jobs[i]
  std::string next_page_token;      // the last of them, or "" at the end
};

// A job that had not ended when the last server did: QUEUED, or SUSPENDED where it was that.
struct AcceptedJob {
  JobSnapshot snapshot;
  GenerationRequest request;
  // Since when it waits, on this process's steady clock: time without a server counts.
  std::chrono::steady_clock::time_point queued_at;
  int64_t checkpoint_step = 0;  // of what ReadCheckpoint gives; 0 = there is none
  // Servers that died while it ran, and may have died of it: not those that stopped it in order
  // (Interrupt) or were asked to stop (NoteStop), nor those that died while a job ran that had a
  // crash already, where it had none; but where it was said whose fault it is (NoteBlame), so.
  int64_t crashes = 0;
};

// Thread-safe. Ids are 128-bit random, hex; the store never interprets them otherwise.
//
// States move forward only: QUEUED, RUNNING and SUSPENDED in turn, one terminal state at last.
class JobStore {
 public:
  virtual ~JobStore() = default;

  // Whether jobs outlive the process.
  virtual bool durable() const = 0;

  // A job comes in. `done` runs once the job is kept, on disk where the store is durable, with the
  // job as it is seen from now on, and true. Where a job was made before under the request's
  // idempotency key, with that job and false; ALREADY_EXISTS (reason IDEMPOTENCY_KEY) where its
  // request was another one. A request's deadline is no part of that comparison but for whether
  // there is one: a retry says it anew. RESOURCE_EXHAUSTED (reason DISK) where the disk takes
  // nothing; then nothing is stored.
  //
  // `done` runs once, on the caller's thread or on the store's, where the next write waits for it:
  // it is short, throws nothing, and calls no verb that is on disk when it returns. Returns at
  // once.
  using Added = std::variant<std::pair<JobSnapshot, bool>, Error>;
  virtual void Accept(const JobSnapshot& job, const GenerationRequest& request,
                      std::function<void(Added)> done) = 0;
  // The same, when it is kept. Throws what Accept gives.
  std::pair<JobSnapshot, bool> Add(const JobSnapshot& job, const GenerationRequest& request) {
    Added added = Waited<Added>([&](auto done) { Accept(job, request, std::move(done)); });
    if (const auto* error = std::get_if<Error>(&added)) throw *error;
    return std::get<std::pair<JobSnapshot, bool>>(std::move(added));
  }
  // The job that the request's key made before, as Add would give it; empty where none did, or the
  // request has no key. Throws ALREADY_EXISTS as Add does.
  virtual std::optional<JobSnapshot> MadeBefore(const GenerationRequest& request) const = 0;
  // Once, before anything else: jobs that had not ended when the last server stopped or died,
  // oldest first. Ended ones are there for Get and List.
  virtual std::vector<AcceptedJob> Recover() = 0;

  // Runs begin, or go on in this process after a Recover: the jobs are RUNNING, and their attempts
  // have grown by one before this returns, durably, by one write for all of them. For each its
  // attempt, or why it did not begin: NOT_FOUND, FAILED_PRECONDITION (reason JOB_FINISHED) for a
  // job that has ended, RESOURCE_EXHAUSTED (DISK). Ids are distinct, and one thread at a time calls
  // it; it throws nothing.
  using Started = std::variant<int64_t, Error>;
  virtual std::vector<Started> StartAll(const std::vector<std::string>& ids) = 0;
  // One job: its attempt. Throws what StartAll gives.
  int64_t Start(const std::string& id) {
    const Started started = StartAll({id}).front();
    if (const auto* error = std::get_if<Error>(&started)) throw *error;
    return std::get<int64_t>(started);
  }
  // The run ends with the server, in order: the job is QUEUED again, with its last checkpoint, and
  // the start does not count as a crash. Returns when that is kept. No effect on what does not run.
  // Throws RESOURCE_EXHAUSTED (DISK) where it cannot be; a crash that does not count then either.
  virtual void Interrupt(const std::string& id) = 0;
  // The process was asked to stop: whatever still runs when it ends, also by a kill, did not crash
  // it. Nobody can tell a crash from a kill then, so a crash that comes after this counts for no
  // job. Outlives the process (not a cut of the power) when this returns, and waits for no disk.
  virtual void NoteStop() = 0;
  // Whose fault it is if the process ends now, whatever runs then and NoteStop and Interrupt said
  // of it: these jobs crashed it and no others; nobody where there are none. Unset: nobody knows,
  // as in the beginning. Outlives the process as NoteStop does.
  virtual void NoteBlame(const std::optional<std::vector<std::string>>& ids) = 0;
  // Keeps the state of a run after `step` steps. Never blocks: written by a thread of the store,
  // the newest one of a job alone. What the disk does not take is dropped with one warning.
  virtual void Checkpoint(const std::string& id, int64_t step, std::string bytes) = 0;
  // The newest checkpoint that was given, for a job whose state was let go; empty where none is
  // left. Never of an ended job.
  virtual std::optional<std::pair<int64_t, std::string>> ReadCheckpoint(const std::string& id) = 0;

  virtual std::optional<JobSnapshot> Get(const std::string& id) const = 0;
  // `state` unset = all. Throws InvalidField for a page token that it cannot have made and for a
  // page size of 0.
  virtual JobPage List(std::optional<JobState> state, size_t page_size,
                       const std::string& page_token) const = 0;
  // Applies `change` (short, must not call back into the store), raises `sequence` by one and wakes
  // the watchers. No effect on a terminal job. Returns what the job is afterwards; empty where it
  // is unknown. Throws INTERNAL, and changes nothing, where the state would go back.
  //
  // A change of state or wish is on disk before it is seen, and before this returns; throws
  // RESOURCE_EXHAUSTED (DISK) where it cannot be, except for a terminal state: that is never lost.
  // It returns then, and readers see the end once the disk has taken it. Other changes stay in
  // memory.
  virtual std::optional<JobSnapshot> Update(const std::string& id,
                                            const std::function<void(JobSnapshot&)>& change) = 0;

  // Keeps a result of a job that runs; the terminal state that lists it follows. Size and digest
  // are filled in where `info` has none. Returns when its bytes are durable under their name.
  // RESOURCE_EXHAUSTED (DISK) where the disk does not take them; no effect on unknown jobs. Results
  // of a job that does not succeed are gone with its end.
  virtual void PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) = 0;
  // Empty where there is none.
  virtual std::shared_ptr<const Artifact> GetArtifact(const std::string& id,
                                                      ArtifactFormat format) const = 0;
  // Forgets an ended job with its files, durably. NOT_FOUND (reason JOB_NOT_FOUND), or
  // FAILED_PRECONDITION (reason JOB_NOT_FINISHED). Who reads a result keeps it.
  virtual void Delete(const std::string& id) = 0;

  // A client has all bytes of one of the job's results.
  virtual void MarkFetched(const std::string& id) = 0;
  // Jobs that succeeded within the last `age` and whose results nobody has fetched.
  virtual int64_t CountUnfetched(std::chrono::steady_clock::duration age) const = 0;

  // Bytes in memory of all that is kept of ended jobs, and of the results among it that MakeRoom
  // could forget. Results on disk are in neither.
  virtual size_t kept_bytes() const = 0;
  virtual size_t forgettable_bytes() const = 0;
  // Forgets ended jobs with their results until `bytes` are free or nothing is left to forget:
  // first those whose results were fetched, then the oldest; never the newest one, nor one that is
  // watched or read.
  virtual void MakeRoom(size_t bytes) = 0;

  // Calls `wake` (short, must not block or call back into the store) after each change of the job,
  // from the changing thread, until the returned handle is gone (a call that has begun by then may
  // still end, so `wake` owns what it touches). Watchers then read Get(): a slow one skips states
  // instead of holding anybody up, and always sees the last: a job that is watched is remembered.
  virtual std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake) = 0;
  // Of the QUEUED jobs that may be watched those whose ids come after this one, in order: at most
  // so many.
  virtual std::vector<std::string> WatchedWaiting(const std::string& after, size_t most) const = 0;
  // Something has changed of a job that is QUEUED or SUSPENDED that is not kept here, as where it
  // stands in the order: raises `sequence` and wakes the watchers. The new one; 0 where it had no
  // effect, as of any other job.
  virtual uint64_t Touch(const std::string& id) = 0;
  // The oldest state after `sequence`, as far as the job's ring of recent ones reaches back; at
  // last what the job is now. Empty where nothing is newer, or it is unknown. For watchers that
  // come back: they ask again and again, and hold no state that is not on its way.
  virtual std::optional<JobSnapshot> After(const std::string& id, uint64_t sequence) const = 0;

  // What operators changed, beside the jobs.
  virtual ControlStore& control() = 0;

  // Why new jobs cannot be kept now, for readiness: one sentence.
  virtual std::optional<std::string> WhyNotReady() const = 0;
};

// Keeps the newest `max_finished` ended jobs that have results (0: 256), as many that have none,
// and at most `max_artifact_bytes` of results; older ones are forgotten, oldest first. Two lists,
// so that a flood of jobs that come to nothing pushes out nobody's results. Jobs that are watched,
// or whose results are being read, stay; where the bytes alone demand it they go after all others.
// The newest ended job is kept whatever its size, and jobs that have not ended are never dropped.
// Nothing outlives the store: checkpoints are not kept, Recover gives nothing.
std::unique_ptr<JobStore> MakeMemoryJobStore(size_t max_finished, size_t max_artifact_bytes);

// An ended job is remembered, with its key, for `keep_results`; its results likewise, within
// `max_artifact_bytes` on disk: the oldest go before their jobs, which then list none.
struct StoreOptions {
  std::string state_dir;
  // As of the memory store; 0: as many as `max_row_bytes` of memory hold, half of it for either
  // kind.
  size_t max_finished = 0;
  uint64_t max_row_bytes = uint64_t{128} << 20;
  uint64_t max_artifact_bytes = uint64_t{1} << 30;
  // Ended jobs are forgotten this long after their end.
  std::chrono::seconds keep_results = std::chrono::hours(7 * 24);
  std::chrono::milliseconds sweep_every = std::chrono::seconds(30);  // looks for such jobs
  // For tests (store/hooks.h); borrowed.
  StoreHooks* hooks = nullptr;
};

// The durable one, under `state_dir`, which is made where it is missing. One process at a time:
// FAILED_PRECONDITION (reason STATE_DIR_IN_USE) names the folder and the other's pid. The same code
// with the file's name for a folder that cannot be written and for files of a newer version.
// `logger` is borrowed.
std::unique_ptr<JobStore> OpenJobStore(const StoreOptions& options, Logger* logger);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_JOB_STORE_H_
