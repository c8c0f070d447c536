// Callers that were answered together come back together, or nearly: the first of them back waits a
// moment for the others, and whoever came meanwhile does, so that they share the next forward too.
// Torch-free; guarded by the engine's mutex.
#ifndef DENOISED_RUNTIME_ENGINE_COMPANY_H_
#define DENOISED_RUNTIME_ENGINE_COMPANY_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace denoised {

class Company {
 public:
  using Clock = std::chrono::steady_clock;

  // Callers whose calls can share a forward, those who wait already among them; at most as many as
  // one forward takes.
  struct Callers {
    std::string batch;  // as WorkProgress has it
    int64_t count = 0;
  };

  // A forward took so long and was answered, and these come back perhaps.
  void Answered(Callers callers, double seconds, Clock::time_point now) {
    callers_ = std::move(callers);
    forgotten_at_ = now + kWayBack + Duration(seconds);
    first_.reset();
  }
  // Something runs. Who is not back by then is not waited for.
  void Leave() { callers_.count = 0; }

  // How many are still on their way where so many calls of a batch wait.
  int64_t Missing(const std::string& batch, int64_t calls) const {
    return batch == callers_.batch ? std::max<int64_t>(0, callers_.count - calls) : 0;
  }

  // How long those that are there had better wait for the missing, where all in one forward are
  // done so many seconds sooner than in two; never beyond `latest`. Nothing: no longer.
  std::optional<Clock::time_point> WaitUntil(double gain, Clock::time_point latest,
                                             Clock::time_point now) {
    if (callers_.count == 0) return std::nullopt;
    if (!first_) {
      if (now >= forgotten_at_) return std::nullopt;
      first_ = now;
    }
    const Clock::duration most = std::min<Clock::duration>(kMostWait, Duration(gain));
    const Clock::time_point until = std::min(*first_ + most, latest);
    return now < until ? std::optional(until) : std::nullopt;
  }

 private:
  static Clock::duration Duration(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  // Whom nobody joins has waited in vain: for what being joined would have saved, and no longer.
  static constexpr std::chrono::milliseconds kMostWait{50};
  // Beside another such forward; who takes longer is not on the way.
  static constexpr std::chrono::milliseconds kWayBack{20};

  Callers callers_;
  Clock::time_point forgotten_at_;
  std::optional<Clock::time_point> first_;  // when the first one back was seen
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_COMPANY_H_
