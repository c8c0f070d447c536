// The calls that are not answered on the spot (streams, denoising steps): how many there are, by
// connection. A stop waits for them, and one connection may hold only so many, so that a call that
// is answered on the spot (a cancel, a look at a job) always finds a free HTTP/2 stream on it.
#ifndef DENOISED_SERVER_OPEN_CALLS_H_
#define DENOISED_SERVER_OPEN_CALLS_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace denoised {

class OpenCalls {
 public:
  // Of `max_streams` streams of a connection, an eighth (at least one) stays free of these calls.
  explicit OpenCalls(int64_t max_streams);

  // A place for one call of the connection `peer`, given back with the ticket, which does not
  // outlive this. Throws RESOURCE_EXHAUSTED (reason TOO_MANY_STREAMS).
  using Ticket = std::shared_ptr<void>;
  Ticket Enter(const std::string& peer);

  int64_t count() const;
  // True once there is none; waits until `deadline` at most.
  bool WaitNone(std::chrono::steady_clock::time_point deadline) const;

 private:
  void Leave(const std::string& peer);

  const int64_t max_per_connection_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::map<std::string, int64_t> by_peer_;  // guarded by mutex_; none is 0
  int64_t count_ = 0;                       // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_SERVER_OPEN_CALLS_H_
