#include "server/stop_signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <utility>

namespace denoised {
namespace {

// What a stuck log may cost a process that has nothing else to do.
constexpr std::chrono::milliseconds kLastWords{200};

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

StopSignals::StopSignals() {
  // A parent may have had them ignored, as shells do for what they start in the background.
  signal(SIGTERM, SIG_DFL);
  signal(SIGINT, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([this] { Run(); }).detach();
}

void StopSignals::LogTo(Logger* logger) {
  std::lock_guard lock(mutex_);
  logger_ = logger;
}

void StopSignals::BeginServing(std::function<void()> first) {
  std::lock_guard lock(mutex_);  // StopEarly holds it to the end of the process
  serving_ = true;
  first_ = std::move(first);
}

int StopSignals::Wait() {
  std::unique_lock lock(mutex_);
  came_.wait(lock, [this] { return number_ != 0; });
  return number_;
}

void StopSignals::ExitAfter(std::chrono::milliseconds time, int code) {
  std::thread([time, code] {
    std::this_thread::sleep_for(time);
    _exit(code);
  }).detach();
}

void StopSignals::Run() {
  const sigset_t set = Signals();
  for (;;) {
    int number = 0;
    if (sigwait(&set, &number) != 0) continue;
    std::unique_lock lock(mutex_);
    if (!serving_) StopEarly(number);
    if (number_ != 0) _exit(128 + number);
    first_();
    number_ = number;
    came_.notify_all();
  }
}

// The stop that was asked for, hence 0.
void StopSignals::StopEarly(int number) {
  if (logger_ != nullptr) {
    logger_->Info("server.stopped_early", {{"number", std::to_string(number)}});
    logger_->Flush(kLastWords);
  }
  _exit(0);
}

}  // namespace denoised
