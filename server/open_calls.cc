#include "server/open_calls.h"

#include <algorithm>

#include "backends/error.h"

namespace denoised {

OpenCalls::OpenCalls(int64_t max_streams)
    : max_per_connection_(max_streams - std::max<int64_t>(1, max_streams / 8)) {}

OpenCalls::Ticket OpenCalls::Enter(const std::string& peer) {
  {
    std::lock_guard lock(mutex_);
    int64_t& of_peer = by_peer_[peer];
    if (of_peer >= max_per_connection_) {
      throw Error(StatusCode::kResourceExhausted,
                  "this connection already has " + std::to_string(of_peer) +
                      " open streams and steps; use another connection "
                      "(the server's --max_streams_per_connection)",
                  "", "TOO_MANY_STREAMS");
    }
    ++of_peer;
    ++count_;
  }
  return Ticket(nullptr, [this, peer](void*) { Leave(peer); });
}

void OpenCalls::Leave(const std::string& peer) {
  std::lock_guard lock(mutex_);
  const auto found = by_peer_.find(peer);
  if (--found->second == 0) by_peer_.erase(found);
  --count_;
  changed_.notify_all();  // under the lock: who waits may end this object next
}

int64_t OpenCalls::count() const {
  std::lock_guard lock(mutex_);
  return count_;
}

bool OpenCalls::WaitNone(std::chrono::steady_clock::time_point deadline) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] { return count_ == 0; });
}

}  // namespace denoised
