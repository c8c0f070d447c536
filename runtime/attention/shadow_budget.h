// What comparisons of backends may hold work up by: a share of the device's time. Torch-free.
#ifndef DENOISED_RUNTIME_ATTENTION_SHADOW_BUDGET_H_
#define DENOISED_RUNTIME_ATTENTION_SHADOW_BUDGET_H_

#include <algorithm>
#include <atomic>

namespace denoised {

// Units of work earn a share of their time, and nothing is spent before it has been earned. What is
// not spent is kept up to a second, or a tenth of a unit where units are long: a quiet day buys no
// long pause. Engine thread; sums are any thread's.
class ShadowBudget {
 public:
  static constexpr double kMostSeconds = 1, kMostOfAUnit = 0.1;

  explicit ShadowBudget(double share) : share_(share) {}

  // A unit of work took so long, with what was spent inside it; how long without.
  double Earn(double unit_seconds) {
    const double own = std::max(0.0, unit_seconds - spent_inside_);
    spent_inside_ = 0;
    device_seconds_ = device_seconds_ + own;
    credit_ = std::min(std::max(kMostSeconds, kMostOfAUnit * own), credit_ + share_ * own);
    return own;
  }
  bool Affords(double seconds) const { return credit_ > 0 && credit_ >= seconds; }
  // Of a unit's time, or between two.
  void Spend(double seconds, bool inside_unit) {
    added_seconds_ = added_seconds_ + seconds;
    credit_ -= seconds;
    if (inside_unit) spent_inside_ += seconds;
  }

  double credit() const { return credit_; }
  double share() const { return share_; }
  double added_seconds() const { return added_seconds_; }
  double device_seconds() const { return device_seconds_; }

 private:
  const double share_;
  double credit_ = 0;
  double spent_inside_ = 0;  // since the last Earn
  std::atomic<double> added_seconds_ = 0, device_seconds_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_SHADOW_BUDGET_H_
