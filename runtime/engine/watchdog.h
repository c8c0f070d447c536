// Whether the unit that runs has hung. Torch-free.
//
// The engine's thread says when a unit begins and ends; ticks of another thread count beside it.
// Time is ticks alone: a process that was stopped, debugged or suspended with its machine had none
// meanwhile, and on a machine that is short of processors they come late themselves.
#ifndef DENOISED_RUNTIME_ENGINE_WATCHDOG_H_
#define DENOISED_RUNTIME_ENGINE_WATCHDOG_H_

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace denoised {

struct WatchedUnit {
  std::string kind, model, backend;
  std::vector<std::string> jobs;  // the ids of those that are in it
  int64_t others = 0;             // calls and sessions
  double expected_seconds = 0;
  // Its like ran here before, so that `expected_seconds` is to be trusted.
  bool measured = false;
  pid_t thread = 0;
};

class Watchdog {
 public:
  using Told = std::function<void(const WatchedUnit&, double seconds)>;
  struct Actions {
    Told hung;       // the ticking thread
    Told recovered;  // the engine's: it ended after all
    Told give_up;    // the ticking thread, once of a unit
  };

  // A unit hangs after ten times its expected time, `hung_after` at least; thirty times as long
  // where its like never ran (kernels are compiled, libraries loaded, the expectation is a guess).
  // So long again as `hung_after`, and it is given up.
  Watchdog(std::chrono::milliseconds hung_after, Actions actions);

  // How often Tick is to be called.
  std::chrono::milliseconds tick() const { return tick_; }
  void Tick();

  // A unit, as long as it runs. Engine thread, one at a time; of no watchdog: nothing.
  class Scope {
   public:
    Scope() = default;
    Scope(Watchdog* watchdog, WatchedUnit unit);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Watchdog* const watchdog_ = nullptr;
  };

  // The unit that hangs now, in a sentence. Any thread.
  std::optional<std::string> Hung() const;

 private:
  void Begin(WatchedUnit unit);
  void End();
  double SecondsAllowed() const;  // under mutex_

  const std::chrono::milliseconds hung_after_, tick_;
  const Actions actions_;
  mutable std::mutex mutex_;                 // guards what follows; no action is called under it
  std::shared_ptr<const WatchedUnit> unit_;  // null between units
  double seconds_ = 0;                       // in ticks
  bool hung_ = false, given_up_ = false;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_WATCHDOG_H_
