#include "server/cli/interrupts.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <list>
#include <mutex>
#include <thread>
#include <vector>

namespace denoised::cli {
namespace {

using Hook = std::function<void()>;

sigset_t EndingSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    if (action.sa_handler != SIG_IGN) sigaddset(&set, number);
  }
  return set;
}

// As if nobody had caught it, so that a shell sees how the program ended.
[[noreturn]] void DieOf(int number) {
  raise(number);
  _exit(128 + number);
}

}  // namespace

struct Interrupts::State {
  std::mutex mutex;
  std::list<std::weak_ptr<Hook>> hooks;

  std::vector<std::shared_ptr<Hook>> LiveHooks() {
    std::lock_guard lock(mutex);
    std::vector<std::shared_ptr<Hook>> live;
    for (const auto& weak : hooks) {
      if (auto hook = weak.lock()) live.push_back(std::move(hook));
    }
    return live;
  }
};

Interrupts::Interrupts() : state_(std::make_shared<State>()) {
  const sigset_t set = EndingSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set, state = state_] {
    int number = 0;
    if (sigwait(&set, &number) != 0) return;
    // A second signal does not wait for the hooks: it finds this thread open to it.
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    for (const auto& hook : state->LiveHooks()) (*hook)();
    DieOf(number);
  }).detach();
}

std::shared_ptr<void> Interrupts::AtEnd(std::function<void()> hook) {
  auto handle = std::make_shared<Hook>(std::move(hook));
  std::lock_guard lock(state_->mutex);
  state_->hooks.remove_if([](const auto& weak) { return weak.expired(); });
  state_->hooks.push_back(handle);
  return handle;
}

}  // namespace denoised::cli
