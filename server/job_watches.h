// Wakes the streams that follow a job. Who changes a job pays for one wake, however many follow it:
// the dispatcher wakes each of them.
#ifndef DENOISED_SERVER_JOB_WATCHES_H_
#define DENOISED_SERVER_JOB_WATCHES_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "runtime/job_store.h"
#include "runtime/task_thread.h"

namespace denoised {

class PulledStream;

// Any thread.
class JobWatches {
 public:
  // Borrowed, and outlives this.
  explicit JobWatches(TaskThread* dispatcher) : dispatcher_(dispatcher) {}

  // Pumps the stream on the dispatcher after a change of the job, once for those that came
  // meanwhile, until the ticket goes, which does not outlive this.
  std::shared_ptr<void> Follow(JobStore& jobs, const std::string& job_id,
                               const std::weak_ptr<PulledStream>& stream);

 private:
  struct Followers;
  std::shared_ptr<Followers> Of(JobStore& jobs, const std::string& job_id);
  void Leave(const std::string& job_id, Followers* followers, uint64_t number);

  TaskThread* const dispatcher_;
  std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<Followers>> of_job_;  // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_SERVER_JOB_WATCHES_H_
