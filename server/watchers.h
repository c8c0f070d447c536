// The streams that only watch a job: what a server that runs short of memory can do without.
// Whoever watches loses nothing: it comes back with the last sequence number that it saw.
#ifndef DENOISED_SERVER_WATCHERS_H_
#define DENOISED_SERVER_WATCHERS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "backends/error.h"
#include "server/job_stream.h"

namespace denoised {

// What a watcher is told that is sent away, or not let in: UNAVAILABLE, reason MEMORY, with a time
// to retry.
Error ComeBackToWatch();

// Any thread.
class Watchers {
 public:
  // Known until the ticket goes, which does not outlive this.
  std::shared_ptr<void> Enter(const std::shared_ptr<PulledStream>& stream);

  // Sends the oldest away: an eighth of all at a time, so that no more go than must, and all have
  // gone after some rounds. How many were told.
  int64_t ShedOldest();

 private:
  std::mutex mutex_;
  uint64_t last_ = 0;                                       // guarded by mutex_
  std::map<uint64_t, std::weak_ptr<PulledStream>> by_age_;  // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_SERVER_WATCHERS_H_
