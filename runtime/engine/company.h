// Callers that were answered together come back together, or nearly: the first of them back waits a
// moment for the others, so that they share the next forward too. Torch-free; guarded by the
// engine's mutex.
#ifndef DENOISED_RUNTIME_ENGINE_COMPANY_H_
#define DENOISED_RUNTIME_ENGINE_COMPANY_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>

namespace denoised {

class Company {
 public:
  using Clock = std::chrono::steady_clock;

  // A forward of calls, and of nothing else, took so long and was answered; so many callers are
  // there, those who wait among them.
  void Answered(int64_t callers, double seconds, Clock::time_point now) {
    callers_ = callers;
    forgotten_at_ = now + kWayBack + Duration(seconds);
    first_.reset();
  }
  // Something else ran.
  void Leave() { callers_ = 0; }

  int64_t callers() const { return callers_; }

  // How long a forward of so many calls (1 and more), all that is there, had better wait for the
  // others, where all in one are done so many seconds sooner than in two. Nothing: no longer.
  std::optional<Clock::time_point> WaitUntil(int64_t calls, double gain, Clock::time_point now) {
    if (calls >= callers_ || now >= forgotten_at_) return std::nullopt;
    if (!first_) first_ = now;
    const Clock::time_point until = *first_ + std::min<Clock::duration>(kMostWait, Duration(gain));
    return now < until ? std::optional(until) : std::nullopt;
  }

 private:
  static Clock::duration Duration(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  // Who does not come back costs the others no more than that, once.
  static constexpr std::chrono::milliseconds kMostWait{50};
  // Beside another such forward; who takes longer is not on the way.
  static constexpr std::chrono::milliseconds kWayBack{20};

  int64_t callers_ = 0;
  Clock::time_point forgotten_at_;
  std::optional<Clock::time_point> first_;  // when the first one back was seen
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_COMPANY_H_
