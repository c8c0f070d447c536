// Waiting for the next change of a job in this process.
#ifndef DENOISED_SERVER_CLI_JOB_CHANGES_H_
#define DENOISED_SERVER_CLI_JOB_CHANGES_H_

#include <functional>
#include <memory>

namespace denoised::cli {

// Blocks one thread on wakes from others. What a wake touches outlives this object: the store may
// still be in the middle of one, on the engine's thread, when nobody waits any more.
class JobChanges {
 public:
  // `watch` registers a wake and hands back what ends it, as JobStore::Watch does.
  using Watch = std::function<std::shared_ptr<void>(std::function<void()> wake)>;
  explicit JobChanges(const Watch& watch);

  // Returns at once the first time, then after each change since the last return.
  void Wait();

 private:
  struct State;
  const std::shared_ptr<State> state_;
  const std::shared_ptr<void> watch_;
};

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_JOB_CHANGES_H_
