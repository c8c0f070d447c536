// The cost model between two servers of a state folder: a file of its own there. What it says is
// never needed, so nothing about it is an error.
#ifndef DENOISED_RUNTIME_ENGINE_COST_FILE_H_
#define DENOISED_RUNTIME_ENGINE_COST_FILE_H_

#include <chrono>
#include <filesystem>
#include <mutex>
#include <optional>

#include "backends/error.h"
#include "runtime/engine/cost_model.h"
#include "runtime/log.h"
#include "runtime/ticker.h"

namespace denoised {

// Keeps what is learnt while it is learnt, so that a server that is killed leaves it too. No caller
// but Save's waits for the disk.
class CostFile {
 public:
  struct Pace {
    std::chrono::milliseconds look = std::chrono::seconds(5);   // whether there is news
    std::chrono::milliseconds rest = std::chrono::seconds(30);  // between two times that it changed
  };

  // Loads what an earlier server learnt; a file that cannot be used is named in one log line.
  // `state_dir` "" = nothing is kept. Model and logger are borrowed.
  CostFile(const std::filesystem::path& state_dir, CostModel* costs, Logger* logger, Pace pace);
  CostFile(const std::filesystem::path& state_dir, CostModel* costs, Logger* logger)
      : CostFile(state_dir, costs, logger, Pace()) {}

  // A job has ended: what has run for the first time by then is kept at once. Any thread.
  void JobEnded();
  // Returns when everything learnt is kept, whole, or was given up with a line in the log. Any
  // thread.
  void Save();

 private:
  void Load();
  void RemoveParts() const;
  bool IsDue() const;
  void Tick();
  void Tell(const std::optional<Error>& error);

  const std::filesystem::path path_;  // empty: nothing is kept
  CostModel* const costs_;
  Logger* const logger_;
  const Pace pace_;
  std::mutex file_mutex_;  // held by who writes; before mutex_
  mutable std::mutex mutex_;
  CostModel::Learnt kept_;                          // guarded by mutex_, as those below
  std::chrono::steady_clock::time_point tried_at_;  // to keep it
  bool failed_ = false;                             // the last try
  std::optional<Ticker> ticker_;                    // last: it uses the others
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_COST_FILE_H_
