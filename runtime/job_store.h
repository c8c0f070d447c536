// Where jobs live. Torch-free. The memory store is the first implementation; a durable one takes
// its place behind the same interface.
#ifndef DENOISED_RUNTIME_JOB_STORE_H_
#define DENOISED_RUNTIME_JOB_STORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/job.h"

namespace denoised {

// An encoded result. Immutable once stored.
struct Artifact {
  ArtifactInfo info;
  std::string bytes;
};

struct JobPage {
  std::vector<JobSnapshot> jobs;    // newest first
  std::vector<std::string> tokens;  // tokens[i] asks for what comes after jobs[i]
  std::string next_page_token;      // the last of them, or "" at the end
};

// Thread-safe. Ids are 128-bit random, hex; the store never interprets them otherwise.
class JobStore {
 public:
  virtual ~JobStore() = default;

  virtual void Add(const JobSnapshot& job) = 0;
  virtual std::optional<JobSnapshot> Get(const std::string& id) const = 0;
  // `state` unset = all. Throws InvalidField for a page token that it cannot have made and for a
  // page size of 0.
  virtual JobPage List(std::optional<JobState> state, size_t page_size,
                       const std::string& page_token) const = 0;
  // Applies `change` under the lock, raises `sequence` by one and wakes the watchers. No effect on
  // a terminal job. Returns what the job is afterwards; empty where it is unknown.
  virtual std::optional<JobSnapshot> Update(const std::string& id,
                                            const std::function<void(JobSnapshot&)>& change) = 0;
  virtual void AddArtifact(const std::string& id, std::shared_ptr<const Artifact> artifact) = 0;
  virtual std::shared_ptr<const Artifact> GetArtifact(const std::string& id,
                                                      ArtifactFormat format) const = 0;
  // A client has all bytes of one of the job's results.
  virtual void MarkFetched(const std::string& id) = 0;
  // Jobs that succeeded within the last `age` and whose results nobody has fetched.
  virtual int64_t CountUnfetched(std::chrono::steady_clock::duration age) const = 0;

  // Bytes of all results that are kept, and of those among them that MakeRoom could forget.
  virtual size_t artifact_bytes() const = 0;
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
};

// Keeps the newest `max_finished` ended jobs that have results, as many that have none, and at most
// `max_artifact_bytes` of results; older ones are forgotten, oldest first. Two lists, so that a
// flood of jobs that come to nothing pushes out nobody's results. Jobs that are watched, or whose
// results are being read, stay; where the bytes alone demand it they go after all others. The
// newest ended job is kept whatever its size, and queued and running jobs are never dropped.
std::unique_ptr<JobStore> MakeMemoryJobStore(size_t max_finished, size_t max_artifact_bytes);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_JOB_STORE_H_
