#include "runtime/ticker.h"

#include <utility>

namespace denoised {

Ticker::Ticker(std::chrono::milliseconds period, std::function<void()> tick)
    : tick_(std::move(tick)), thread_([this, period] { Run(period); }) {}

Ticker::~Ticker() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Ticker::Now() {
  const std::lock_guard lock(tick_mutex_);
  tick_();
}

void Ticker::Soon() {
  {
    const std::lock_guard lock(mutex_);
    soon_ = true;
  }
  wake_.notify_one();
}

void Ticker::Run(std::chrono::milliseconds period) {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait_for(lock, period, [this] { return ending_ || soon_; });
    if (ending_) return;
    soon_ = false;
    lock.unlock();
    Now();
    lock.lock();
  }
}

}  // namespace denoised
