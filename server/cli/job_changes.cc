#include "server/cli/job_changes.h"

#include <condition_variable>
#include <mutex>

namespace denoised::cli {

struct JobChanges::State {
  std::mutex mutex;
  std::condition_variable wake;
  bool changed = true;  // the first look is free
};

JobChanges::JobChanges(const Watch& watch)
    : state_(std::make_shared<State>()), watch_(watch([state = state_] {
        std::lock_guard lock(state->mutex);
        state->changed = true;
        state->wake.notify_one();
      })) {}

void JobChanges::Wait() {
  std::unique_lock lock(state_->mutex);
  state_->wake.wait(lock, [this] { return state_->changed; });
  state_->changed = false;
}

}  // namespace denoised::cli
