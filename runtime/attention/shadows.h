// Shadow comparisons and the budgets of leases: which calls are compared, when, and what was found.
#ifndef DENOISED_RUNTIME_ATTENTION_SHADOWS_H_
#define DENOISED_RUNTIME_ATTENTION_SHADOWS_H_

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/attention/error_statistics.h"
#include "runtime/attention/shadow_budget.h"
#include "runtime/attention/watched_calls.h"
#include "runtime/observer.h"
#include "runtime/selection_policy.h"
#include "runtime/shadow.h"

namespace at {
class Tensor;
}  // namespace at

namespace denoised {

struct AttentionInputs;
struct ShadowCall;

// Owned by the engine, one for all models. A shadow's calls are copied, kept in a short queue, and
// compared while there is no work, or between two units; those that are too large to be kept, and a
// budget's, are compared at once, so that
// the step that breaks it is the one that is done again. All of it holds work up by `share` of the
// device's time at most; what that does not pay for is not compared, unless there is no work.
class Shadows {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;
  static constexpr size_t kMostShadows = 16;    // live ones
  static constexpr size_t kMostKept = 16;       // calls
  static constexpr size_t kLastSamples = 1000;  // that statistics are over

  // `most_bytes`: of kept calls, and of what a comparison adds.
  Shadows(double share, int64_t most_bytes, Clock clock, Observer* observer);
  ~Shadows();
  Shadows(const Shadows&) = delete;
  Shadows& operator=(const Shadows&) = delete;

  // Any thread.

  // Throws INVALID_ARGUMENT naming "share_percent", "ttl" or a field of the scope,
  // RESOURCE_EXHAUSTED (reason TOO_MANY_SHADOWS).
  ShadowInfo Start(ShadowRequest request);
  // Live ones, and the last that have ended, newest first.
  std::vector<ShadowInfo> List() const;
  // What it found; nothing where no live one is called so.
  std::optional<ShadowInfo> Stop(const std::string& id);
  void StopAll(const std::string& why);
  // Samples of a lease's budget, and what it is at least by now; nothing where there are none.
  std::optional<std::pair<int64_t, double>> Judged(const std::string& lease_id) const;
  // What admission has to leave where any is live, or may come with a lease.
  int64_t most_bytes() const { return on() ? most_bytes_ : 0; }
  // Whether any is live.
  bool any() const;
  bool on() const { return time_.share() > 0; }
  // A comparison lost it: no work that ran then.
  bool lost_device() const { return lost_device_; }

  // Engine thread, all that follow.

  // The unit under way has calls that are judged by a budget: time between units is left for them.
  void LeaveTime() { judges_ = true; }
  // Whether there is time for a comparison.
  bool Affords() const { return time_.Affords(0); }
  // Id and request of those that hold for the work.
  std::vector<std::pair<std::string, ShadowRequest>> Live(const WorkIdentity& work) const;

  // After each call of a slot that is watched, `out` being what it gave.
  void After(const AttentionSlot& slot, int layer, const AttentionInputs& inputs,
             const at::Tensor& out, double call_seconds);
  // After each unit; how long it took without what was compared inside of it.
  double UnitRan(double seconds);
  // What else has held work up, inside of a unit or not.
  void HeldUp(double seconds, bool inside_unit);

  bool pending() const;
  // Compares the oldest call that waits, in idle time, or (false) where there is time for it
  // between two units; whether there may be more to do. What a stop point says ends it.
  bool RunOne(bool idle);

  // Of a lease with a budget that was broken: the sentence.
  std::optional<std::string> WhyBroken(const std::string& lease_id) const;
  // Those that were ended since this was asked last because their candidate threw again and again.
  std::vector<ShadowInfo> TakeGivenUp();
  // Samples of leases and paces of shadows that are no more. Cheap where `version`, the policy's,
  // has not moved.
  void Forget(const LeaseList& leases, uint64_t version);

 private:
  using Place = std::tuple<AttnBackend, AttentionRole, std::string>;  // baseline, role, band
  enum class Outcome : uint8_t { kDone, kFailed, kStopped, kTooLong };
  void RethrowLost(const std::optional<Error>& error);

  struct Shadow {
    std::string id;
    ShadowRequest request;
    std::optional<std::chrono::steady_clock::time_point> ends_at;
    int64_t failures = 0;
    std::string end;  // why it was ended; "" where it was not
    std::map<Place, ErrorStatistics> found;
  };
  // Of a comparison, by its id: what one takes, and calls in scope of this unit and the last.
  struct Pace {
    double seconds_a_pair = 0;
    int64_t calls = 0, calls_before = 0;
  };

  bool Draws(const ShadowCall& call, bool at_once, double call_seconds);
  double SecondsOf(const ShadowCall& call) const;
  void Keep(std::unique_ptr<ShadowCall> call);
  void CompareNow(const ShadowCall& call);
  Outcome Take(const ShadowCall& call, std::optional<double> most_seconds, double* seconds);
  void Learn(const ShadowCall& call, Outcome outcome, double seconds);
  std::unique_ptr<ShadowCall> Next(bool idle);
  void Record(const ShadowCall& call, const CallError& error);
  void NoteFailure(const ShadowCall& call, const std::string& what);
  ShadowInfo InfoOf(const Shadow& shadow) const;  // under mutex_, as all that follow
  bool IsLive(const Shadow& shadow) const;
  bool IsLive(const std::string& id) const;
  void Changed() const;

  const Clock clock_;
  Observer* const observer_;
  const int64_t most_bytes_;
  ShadowBudget time_;
  std::map<std::string, Pace> paces_;
  uint64_t forgotten_at_ = 0;
  std::atomic<bool> lost_device_{false};
  double copy_rate_ = 0;                  // seconds a byte
  bool judges_ = false, judged_ = false;  // budgets had calls in this unit, in the last
  std::minstd_rand random_;

  mutable std::mutex mutex_;  // guards all below
  mutable std::deque<Shadow> shadows_;
  mutable std::deque<std::unique_ptr<ShadowCall>> queue_;
  std::vector<ShadowInfo> given_up_;
  std::map<std::string, BudgetSamples> leases_;
  uint64_t next_ = 1;
  mutable std::atomic<bool> any_ = false, judging_ = false;
  mutable std::atomic<uint64_t> changes_ = 0;
  mutable std::atomic<int64_t> next_end_ns_ = INT64_MAX;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_SHADOWS_H_
