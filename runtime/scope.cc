#include "runtime/scope.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "backends/error.h"

namespace denoised {
namespace {

// In ScopeKind's order; the names of the command line and of labels.
constexpr std::array kKinds = {"job",    "tenant", "share", "model",
                               "layers", "steps",  "sigma", "role"};

std::array<bool, kKinds.size()> Said(const LeaseScope& scope) {
  const PlaceScope& where = scope.where;
  return {scope.job.has_value(),   scope.tenant.has_value(), scope.share.has_value(),
          scope.model.has_value(), where.layers.has_value(), where.steps.has_value(),
          where.sigma.has_value(), where.role.has_value()};
}

// The shortest spelling that reads as the same number, never with an exponent's minus.
std::string Number(double value) {
  char text[400];
  const auto end =
      std::to_chars(text, text + sizeof text, value + 0.0, std::chars_format::fixed).ptr;
  return {text, end};
}

template <typename T>
std::optional<T> Parse(std::string_view text) {
  T value{};
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "a-b", or "a" for both.
template <typename T>
std::optional<std::pair<T, T>> ParsePair(std::string_view text) {
  const size_t dash = text.find('-');
  const auto first = Parse<T>(text.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : Parse<T>(text.substr(dash + 1));
  if (!first || !last || *first < 0 || *first > *last) return std::nullopt;
  return std::pair(*first, *last);
}

template <typename T>
std::strong_ordering CompareSizes(const std::optional<T>& a, const std::optional<T>& b,
                                  double (*size)(const T&)) {
  if (!a || !b) return std::strong_ordering::equal;
  const double x = size(*a), y = size(*b);
  return x < y   ? std::strong_ordering::less
         : x > y ? std::strong_ordering::greater
                 : std::strong_ordering::equal;
}

double LengthOf(const Interval& interval) { return static_cast<double>(interval.size()); }
double WidthOf(const SigmaRange& range) { return range.high - range.low; }
double Itself(const double& share) { return share; }

void CheckInterval(const std::optional<Interval>& interval, const std::string& field) {
  if (!interval || (interval->first >= 0 && interval->first <= interval->last)) return;
  throw InvalidField(field, "wanted first <= last, both 0 or more; got " +
                                std::to_string(interval->first) + " and " +
                                std::to_string(interval->last));
}

void CheckName(const std::optional<std::string>& name, const std::string& field) {
  if (!name || (name->size() <= 128 &&
                std::ranges::all_of(*name, [](unsigned char c) { return c > 0x20 && c < 0x7f; }))) {
    return;
  }
  throw InvalidField(field, "at most 128 printable characters of ASCII, without blanks");
}

}  // namespace

std::string ToText(const Interval& interval) {
  const std::string first = std::to_string(interval.first);
  return interval.size() == 1 ? first : first + "-" + std::to_string(interval.last);
}

std::optional<Interval> ParseInterval(std::string_view text) {
  const auto pair = ParsePair<int64_t>(text);
  return pair ? std::optional(Interval{pair->first, pair->second}) : std::nullopt;
}

std::string ToText(const SigmaRange& range) { return Number(range.low) + "-" + Number(range.high); }

std::optional<SigmaRange> ParseSigmaRange(std::string_view text) {
  const auto pair = ParsePair<double>(text);
  if (!pair || !std::isfinite(pair->second)) return std::nullopt;
  return SigmaRange{pair->first, pair->second};
}

bool InLoop(AttentionRole role) {
  return role == AttentionRole::kSelf || role == AttentionRole::kCross;
}

std::optional<AttentionRole> LoopRoleFromName(std::string_view name) {
  for (AttentionRole role : {AttentionRole::kSelf, AttentionRole::kCross}) {
    if (AttentionRoleName(role) == name) return role;
  }
  return std::nullopt;
}

std::optional<ScopeKind> PlaceScope::Unmet(const Place& place) const {
  if (role && *role != place.role) return ScopeKind::kRole;
  if (layers && !(place.layer && layers->Has(*place.layer))) return ScopeKind::kLayers;
  if (steps && !(place.step && steps->Has(*place.step))) return ScopeKind::kSteps;
  if (sigma && !(place.sigma && sigma->Has(*place.sigma))) return ScopeKind::kSigma;
  return std::nullopt;
}

std::optional<ScopeKind> LeaseScope::Unmet(const WorkIdentity& work) const {
  if (job && *job != work.id) return ScopeKind::kJob;
  if (tenant && *tenant != work.tenant) return ScopeKind::kTenant;
  if (model && *model != work.model) return ScopeKind::kModel;
  if (share && !(ShareOfId(work.id) < *share)) return ScopeKind::kShare;
  return std::nullopt;
}

double PercentOf(double share) { return std::round(share * 1e12) / 1e10; }
std::string PercentText(double share) { return Number(PercentOf(share)) + "%"; }

std::string ToText(const LeaseScope& scope) {
  const PlaceScope& where = scope.where;
  std::string text;
  const auto add = [&](const char* kind, const std::string& value) {
    text += (text.empty() ? "" : " ") + std::string(kind) + "=" + value;
  };
  if (scope.job) add("job", *scope.job);
  if (scope.tenant) add("tenant", *scope.tenant);
  if (scope.share) add("share", PercentText(*scope.share));
  if (scope.model) add("model", *scope.model);
  if (where.layers) add("layers", ToText(*where.layers));
  if (where.steps) add("steps", ToText(*where.steps));
  if (where.sigma) add("sigma", ToText(*where.sigma));
  if (where.role) add("role", std::string(AttentionRoleName(*where.role)));
  return text.empty() ? "server" : text;
}

std::string KindsText(const LeaseScope& scope) {
  const auto said = Said(scope);
  std::string text;
  for (size_t i = 0; i < kKinds.size(); ++i) {
    if (said[i]) text += (text.empty() ? "" : "+") + std::string(kKinds[i]);
  }
  return text.empty() ? "server" : text;
}

std::strong_ordering CompareNarrowness(const LeaseScope& a, const LeaseScope& b) {
  const auto x = Said(a), y = Said(b);
  for (size_t i = 0; i < kKinds.size(); ++i) {
    if (x[i] != y[i]) return x[i] ? std::strong_ordering::less : std::strong_ordering::greater;
  }
  if (const auto by = CompareSizes(a.where.layers, b.where.layers, LengthOf); by != 0) return by;
  if (const auto by = CompareSizes(a.where.steps, b.where.steps, LengthOf); by != 0) return by;
  if (const auto by = CompareSizes(a.where.sigma, b.where.sigma, WidthOf); by != 0) return by;
  return CompareSizes(a.share, b.share, Itself);
}

void CheckPlaces(const PlaceScope& where, const std::string& field) {
  CheckInterval(where.layers, field + ".layers");
  CheckInterval(where.steps, field + ".steps");
  const auto& sigma = where.sigma;
  if (!sigma || (sigma->low >= 0 && sigma->low <= sigma->high && std::isfinite(sigma->high)))
    return;
  throw InvalidField(field + ".sigma", "wanted low <= high, both finite and 0 or more; got " +
                                           std::to_string(sigma->low) + " and " +
                                           std::to_string(sigma->high));
}

void CheckScope(const LeaseScope& scope, const std::string& field) {
  CheckName(scope.job, field + ".job_id");
  CheckName(scope.tenant, field + ".tenant");
  CheckPlaces(scope.where, field);
  if (scope.share && !(*scope.share > 0 && *scope.share <= 1)) {
    throw InvalidField(field + ".share_percent", "wanted more than 0 and at most 100; got " +
                                                     Number(PercentOf(*scope.share)));
  }
}

// FNV-1a, whose high bits are then mixed as in SplitMix64.
double ShareOfId(std::string_view id) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : id) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
  hash ^= hash >> 31;
  return static_cast<double>(hash >> 11) * 0x1p-53;
}

}  // namespace denoised
