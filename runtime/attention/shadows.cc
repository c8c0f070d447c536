// Which shadows and budgets there are, and what was found: any thread.
#include "runtime/attention/shadows.h"

#include <algorithm>

#include "backends/error.h"
#include "runtime/attention/shadow_calls.h"

namespace denoised {
namespace {

using std::chrono::steady_clock;

constexpr size_t kEndedKept = 16;
constexpr std::chrono::milliseconds kMostTtl = std::chrono::hours(24);

int64_t Nanoseconds(steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

void Check(const ShadowRequest& request) {
  CheckScope(request.scope, "scope");
  if (!(request.share > 0 && request.share <= 1)) {
    throw InvalidField("share_percent", "wanted more than 0 and at most 100");
  }
  if (request.ttl && (request.ttl->count() <= 0 || *request.ttl > kMostTtl)) {
    throw InvalidField("ttl", "wanted more than 0 and at most 24 hours; got " +
                                  std::to_string(request.ttl->count()) + " ms");
  }
}

ShadowStatistics StatisticsOf(AttnBackend baseline, AttentionRole role, const std::string& band,
                              const ErrorStatistics& found) {
  const auto l2 = [&](Statistic statistic) {
    return found.Of(ErrorMetric::kRelativeL2, statistic);
  };
  return {baseline,
          role,
          band,
          found.total(),
          l2(Statistic::kP50),
          l2(Statistic::kP99),
          l2(Statistic::kMax),
          found.Of(ErrorMetric::kMaxAbs, Statistic::kMax),
          found.Of(ErrorMetric::kCosineDistance, Statistic::kMax)};
}

}  // namespace

Shadows::Shadows(double share, int64_t most_bytes, Clock clock, Observer* observer)
    : clock_(std::move(clock)), observer_(observer), most_bytes_(most_bytes), time_(share) {}

Shadows::~Shadows() = default;

// ---- which there are ---------------------------------------------------------------------------

bool Shadows::IsLive(const Shadow& shadow) const {
  return shadow.end.empty() && (!shadow.ends_at || clock_() < *shadow.ends_at);
}

bool Shadows::IsLive(const std::string& id) const {
  const auto shadow = std::ranges::find(shadows_, id, &Shadow::id);
  return shadow != shadows_.end() && IsLive(*shadow);
}

// Lets go of calls that were kept for those that have ended, and of the oldest of these.
void Shadows::Changed() const {
  std::erase_if(queue_, [&](const auto& call) { return !IsLive(call->comparison->id); });
  auto ended = static_cast<size_t>(
      std::ranges::count_if(shadows_, [&](const Shadow& shadow) { return !IsLive(shadow); }));
  std::erase_if(shadows_, [&](const Shadow& shadow) {
    return !IsLive(shadow) && ended > kEndedKept && ended-- > kEndedKept;
  });
  int64_t next = INT64_MAX;
  bool any = false;
  for (const Shadow& shadow : shadows_) {
    if (!IsLive(shadow)) continue;
    any = true;
    if (shadow.ends_at) next = std::min(next, Nanoseconds(*shadow.ends_at));
  }
  next_end_ns_ = next;
  any_ = any;
  ++changes_;
}

ShadowInfo Shadows::Start(ShadowRequest request) {
  Check(request);
  const std::lock_guard lock(mutex_);
  const auto live = std::ranges::count_if(shadows_, [&](const Shadow& s) { return IsLive(s); });
  if (live >= static_cast<int64_t>(kMostShadows)) {
    throw Error(StatusCode::kResourceExhausted,
                std::to_string(kMostShadows) + " shadows are live: stop one, or wait for an end",
                "", "TOO_MANY_SHADOWS");
  }
  Shadow shadow;
  shadow.id = "shadow-" + std::to_string(next_++);
  if (request.ttl) shadow.ends_at = clock_() + *request.ttl;
  shadow.request = std::move(request);
  shadows_.push_back(std::move(shadow));
  Changed();
  return InfoOf(shadows_.back());
}

std::vector<ShadowInfo> Shadows::List() const {
  const std::lock_guard lock(mutex_);
  Changed();
  std::vector<ShadowInfo> all;
  for (auto shadow = shadows_.rbegin(); shadow != shadows_.rend(); ++shadow) {
    all.push_back(InfoOf(*shadow));
  }
  return all;
}

std::optional<ShadowInfo> Shadows::Stop(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(shadows_, id, &Shadow::id);
  if (found == shadows_.end() || !IsLive(*found)) return std::nullopt;
  found->end = "stopped";
  const ShadowInfo info = InfoOf(*found);
  Changed();
  return info;
}

void Shadows::StopAll(const std::string& why) {
  const std::lock_guard lock(mutex_);
  for (Shadow& shadow : shadows_) {
    if (IsLive(shadow)) shadow.end = why;
  }
  Changed();
}

ShadowInfo Shadows::InfoOf(const Shadow& shadow) const {
  ShadowInfo info{shadow.id, shadow.request, std::nullopt, shadow.end, {}, {}};
  if (!IsLive(shadow)) {
    info.remaining = std::chrono::milliseconds(0);
    if (info.end.empty()) info.end = "its time was over";
  } else if (shadow.ends_at) {
    info.remaining = std::chrono::ceil<std::chrono::milliseconds>(*shadow.ends_at - clock_());
  }
  for (const auto& [place, found] : shadow.found) {
    const auto& [baseline, role, band] = place;
    info.statistics.push_back(StatisticsOf(baseline, role, band, found));
  }
  info.cost = {time_.added_seconds(), time_.device_seconds(), time_.share()};
  return info;
}

bool Shadows::any() const {
  const int64_t end = next_end_ns_;
  if (end != INT64_MAX && Nanoseconds(clock_()) >= end) {
    const std::lock_guard lock(mutex_);
    Changed();
  }
  return any_;
}

std::vector<std::pair<std::string, ShadowRequest>> Shadows::Live(const WorkIdentity& work) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<std::string, ShadowRequest>> live;
  for (const Shadow& shadow : shadows_) {
    if (IsLive(shadow) && shadow.request.scope.Holds(work)) {
      live.emplace_back(shadow.id, shadow.request);
    }
  }
  return live;
}

// ---- what was found ----------------------------------------------------------------------------

void Shadows::Record(const ShadowCall& call, const CallError& error) {
  const Comparison& comparison = *call.comparison;
  const std::string band(call.watched->sigma_band);
  observer_->OnShadow(call.baseline(), call.candidate(), call.watched->role, band,
                      error.relative_l2);
  const std::lock_guard lock(mutex_);
  if (comparison.budget) {
    leases_.try_emplace(comparison.id, *comparison.budget).first->second.Add(error);
    judging_ = true;
    return;
  }
  const auto shadow = std::ranges::find(shadows_, comparison.id, &Shadow::id);
  if (shadow == shadows_.end()) return;
  const Place place{call.baseline(), call.watched->role, band};
  shadow->found.try_emplace(place, kLastSamples).first->second.Add(error);
}

// A candidate that throws again and again is of no use.
void Shadows::NoteFailure(const ShadowCall& call, const std::string& what) {
  constexpr int64_t kMostFailures = 3;
  const std::lock_guard lock(mutex_);
  const auto shadow = std::ranges::find(shadows_, call.comparison->id, &Shadow::id);
  if (shadow == shadows_.end() || ++shadow->failures < kMostFailures) return;
  if (!IsLive(*shadow)) return;
  shadow->end = "its candidate failed " + std::to_string(kMostFailures) + " times: " + what;
  given_up_.push_back(InfoOf(*shadow));
  Changed();
}

std::vector<ShadowInfo> Shadows::TakeGivenUp() {
  const std::lock_guard lock(mutex_);
  return std::exchange(given_up_, {});
}

std::optional<std::pair<int64_t, double>> Shadows::Judged(const std::string& lease_id) const {
  const std::lock_guard lock(mutex_);
  const auto samples = leases_.find(lease_id);
  if (samples == leases_.end()) return std::nullopt;
  return std::pair(samples->second.total(), samples->second.AtLeast());
}

std::optional<std::string> Shadows::WhyBroken(const std::string& lease_id) const {
  if (!judging_) return std::nullopt;
  const std::lock_guard lock(mutex_);
  const auto samples = leases_.find(lease_id);
  return samples == leases_.end() ? std::nullopt : samples->second.WhyBroken();
}

void Shadows::Forget(const LeaseList& leases, uint64_t version) {
  const uint64_t now = version + changes_;  // both grow
  if (std::exchange(forgotten_at_, now) == now) return;
  const auto is_leased = [&](const std::string& id) {
    return std::ranges::count(leases, id, &Lease::id) > 0;
  };
  const std::lock_guard lock(mutex_);
  std::erase_if(leases_, [&](const auto& samples) { return !is_leased(samples.first); });
  std::erase_if(paces_,
                [&](const auto& pace) { return !is_leased(pace.first) && !IsLive(pace.first); });
  judging_ = !leases_.empty();
}

}  // namespace denoised
