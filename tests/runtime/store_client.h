// A client of a durable store that remembers what it was told, and the checker that holds a store
// to that after the client's server, or its machine, came to a sudden end.
#ifndef DENOISED_TESTS_RUNTIME_STORE_CLIENT_H_
#define DENOISED_TESTS_RUNTIME_STORE_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "runtime/job_store.h"

namespace denoised {

// What a client has been told of a job. Written before and after each verb, so that one whose
// answer never came may have happened or not. It may lie in memory that outlives a process.
struct Told {
  enum Phase : uint8_t { kNothing, kAsked, kAdded, kEnding, kEnded, kDeleting, kDeleted };
  std::atomic<uint8_t> phase;
  std::atomic<uint8_t> end;  // JobState, from kEnding on
  std::atomic<int> starts_asked, starts;
  std::atomic<int> checkpoint;  // step of the last one that was certainly kept
  char sha256[65];              // of its result, from kEnding on where it succeeds
};
struct ToldLog {
  static constexpr int kMostJobs = 4000;
  std::atomic<int> jobs;
  Told told[kMostJobs];
};

// Submits jobs, starts, checkpoints, interrupts, ends and deletes them, as its seed has it.
class StoreClient {
 public:
  StoreClient(JobStore* store, ToldLog* log, uint32_t seed)
      : store_(store), log_(log), random_(seed) {}

  // Throws what the store does.
  void Work(int verbs);

 private:
  void Add();
  void Advance(int job);
  void Delete(Told* told, const std::string& id);
  void Checkpoint(Told* told, const std::string& id);
  void End(Told* told, const std::string& id);

  JobStore* const store_;
  ToldLog* const log_;
  std::mt19937 random_;
};

// Opens the store, and says what of it is not as it was told. Afterwards the log says what the
// store does of all that was in between.
class StoreChecker {
 public:
  StoreChecker(StoreOptions options, ToldLog* log) : options_(std::move(options)), log_(log) {}

  std::vector<std::string> Violations();

 private:
  void CheckStore();
  void CheckJob(JobStore& store, const std::map<std::string, AcceptedJob>& recovered, int number);
  void CheckEnd(JobStore& store, const JobSnapshot& job, Told* told);
  void CheckIntegrity();
  void Require(bool holds, const std::string& id, const std::string& what);

  const StoreOptions options_;
  ToldLog* const log_;
  std::vector<std::string> violations_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_STORE_CLIENT_H_
