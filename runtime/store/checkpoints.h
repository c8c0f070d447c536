// The last states of runs, as files that a thread of their own writes. Torch-free; any thread.
#ifndef DENOISED_RUNTIME_STORE_CHECKPOINTS_H_
#define DENOISED_RUNTIME_STORE_CHECKPOINTS_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "runtime/log.h"
#include "runtime/store/state_folder.h"

namespace denoised {

struct StoredCheckpoint {
  int64_t step = 0;
  std::string bytes;
};

class Checkpoints {
 public:
  // Both borrowed.
  Checkpoints(const StateFolder* folder, Logger* logger);
  // Writes what was given.
  ~Checkpoints();

  // Returns at once. Of a job that has one on its way the newer takes the older's place.
  void Put(const std::string& id, StoredCheckpoint checkpoint);
  // The newest one: what is on its way, or the file's. A file whose bytes are not all there is
  // none.
  std::optional<StoredCheckpoint> Read(const std::string& id) const;
  // Returns once nothing of the job is on its way.
  void Flush(const std::string& id);
  // The job needs none any more.
  void Drop(const std::string& id);
  // Once, at start: files of other jobs go.
  void KeepOnly(const std::set<std::string>& ids);

 private:
  void Loop();
  void Write(const std::string& id, const StoredCheckpoint& checkpoint);

  const StateFolder* const folder_;
  Logger* const logger_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, StoredCheckpoint> waiting_;
  std::optional<std::pair<std::string, StoredCheckpoint>> current_;  // set and reset under mutex_
  bool current_dropped_ = false;
  bool stopping_ = false;
  bool warned_ = false;  // the writer's
  std::thread thread_;   // last
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_CHECKPOINTS_H_
