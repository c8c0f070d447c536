// Where attention runs, and for which of these places a rule or a lease holds. Torch-free plain
// values.
//
// Narrowness. Of two leases that hold for a call the narrower one decides; of equally narrow ones
// the newer. A scope is narrower than another where, at the first of these kinds in which they
// differ, it says something and the other does not:
//   job, tenant, share, model, layers, steps, sigma, role
// (whose work it is goes before where in the work). Where both say the same kinds, the one with
// fewer layers, then fewer steps, then the shorter range of sigma, then the smaller share is
// narrower.
#ifndef DENOISED_RUNTIME_SCOPE_H_
#define DENOISED_RUNTIME_SCOPE_H_

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/attention_spec.h"
#include "backends/selector.h"

namespace denoised {

// Whole numbers from `first` to `last`, both included; layers and steps count from 0.
struct Interval {
  int64_t first = 0, last = 0;
  bool Has(int64_t n) const { return n >= first && n <= last; }
  int64_t size() const { return last - first + 1; }
  bool operator==(const Interval&) const = default;
};
std::string ToText(const Interval& interval);  // "4-19"; "4" where it is one
// Of that text. Empty for any other, and where first > last.
std::optional<Interval> ParseInterval(std::string_view text);

// Noise levels of the schedule, both included.
struct SigmaRange {
  double low = 0, high = 0;
  bool Has(double sigma) const { return sigma >= low && sigma <= high; }
  bool operator==(const SigmaRange&) const = default;
};
std::string ToText(const SigmaRange& range);  // "0.2-0.9"
std::optional<SigmaRange> ParseSigmaRange(std::string_view text);

// Whether a role runs in the denoising loop. Only there are layers, steps and sigmas to name: what
// is scoped by one of these never holds for another role.
bool InLoop(AttentionRole role);

// "self" and "cross": of the roles in the loop, which alone can be asked for by name.
std::optional<AttentionRole> LoopRoleFromName(std::string_view name);

// What a scope may say, in the order of narrowness.
enum class ScopeKind : uint8_t { kJob, kTenant, kShare, kModel, kLayers, kSteps, kSigma, kRole };

// A call of attention inside a piece of work.
struct Place {
  AttentionRole role = AttentionRole::kSelf;
  std::optional<int64_t> layer;
  std::optional<int64_t> step;
  std::optional<double> sigma;
};

// The places that a rule or a lease holds for; what is unset holds for all.
struct PlaceScope {
  std::optional<AttentionRole> role = std::nullopt;
  std::optional<Interval> layers = std::nullopt, steps = std::nullopt;
  std::optional<SigmaRange> sigma = std::nullopt;
  bool Holds(const Place& place) const { return !Unmet(place); }
  // A kind by which it does not hold there: the first of role, layers, steps and sigma.
  std::optional<ScopeKind> Unmet(const Place& place) const;
  bool operator==(const PlaceScope&) const = default;
};

// One rule of a schedule: of a job, a session or a model's denoised.json.
struct AttentionRule {
  PlaceScope where = {};
  AttnBackend backend = AttnBackend::kReference;
  // As AttentionOptions::parameters_json.
  std::string parameters_json = {};
  SelectionMode mode = SelectionMode::kPrefer;
  bool operator==(const AttentionRule&) const = default;
};

// Whose work it is.
struct WorkIdentity {
  std::string model, tenant;
  std::string id;  // of the job or session; drawn for a Denoise call
  bool operator==(const WorkIdentity&) const = default;
};

// What a lease holds for: a conjunction.
struct LeaseScope {
  std::optional<std::string> job = std::nullopt, tenant = std::nullopt, model = std::nullopt;
  // Part of all work, above 0 and at most 1: a canary. Which work is in it follows from its id
  // alone, so it stays the same for a job, and a larger share holds all of a smaller one.
  std::optional<double> share = std::nullopt;
  PlaceScope where = {};
  bool Holds(const WorkIdentity& work) const { return !Unmet(work); }
  // A kind by which it does not hold for it: the first of job, tenant, model and share.
  std::optional<ScopeKind> Unmet(const WorkIdentity& work) const;
  bool operator==(const LeaseScope&) const = default;
};

// A share in percent, without the last digits that the division by 100 made up.
double PercentOf(double share);
std::string PercentText(double share);  // "20%"

// "server" where nothing is said, else "model=shapes layers=0-5 share=20%".
std::string ToText(const LeaseScope& scope);
// The kinds that it says, for a label with few values: "server", "model+layers".
std::string KindsText(const LeaseScope& scope);
// `less`: a is narrower.
std::strong_ordering CompareNarrowness(const LeaseScope& a, const LeaseScope& b);
// Throws InvalidField(field + ".layers", ...) and the like for what can hold for nothing.
void CheckScope(const LeaseScope& scope, const std::string& field);
void CheckPlaces(const PlaceScope& where, const std::string& field);

// Where `id` lies, 0 <= x < 1, evenly spread: it is in every share above that.
double ShareOfId(std::string_view id);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_SCOPE_H_
