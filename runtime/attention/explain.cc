#include "runtime/attention/explain.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <set>
#include <utility>

#include "runtime/caught.h"

namespace denoised {
namespace {

// One wish, whatever its parameters have become.
bool IsSame(const Wish& a, const Wish& b) {
  return a.source == b.source && a.backend == b.backend && a.lease_id == b.lease_id &&
         a.rule == b.rule;
}

// Tells of wishes in their order until one is granted, and that it came first after that.
class Teller {
 public:
  explicit Teller(const Selection* selection) : selection_(selection) {}

  void Tell(const Wish& wish, const std::function<std::optional<std::string>()>& why_not) {
    ExplainedWish& one = told_.emplace_back(wish);
    if (!first_.empty()) {
      one.outcome = WishOutcome::kHidden;
      one.reason = first_ + " came first";
    } else if (selection_ != nullptr && IsSame(wish, selection_->granted)) {
      one.outcome = WishOutcome::kGranted;
      first_ = std::string(AttnBackendName(wish.backend)) + " by " + SourceText(wish);
    } else if (const auto reason = why_not()) {
      one.outcome = WishOutcome::kRefused;
      one.reason = *reason;
    } else {
      one.outcome = WishOutcome::kHidden;
      one.reason = "could serve, but a strict wish before it was refused";
    }
  }

  std::vector<ExplainedWish> Take() { return std::move(told_); }

 private:
  const Selection* const selection_;
  std::string first_;
  std::vector<ExplainedWish> told_;
};

// The wishes of leases that may hold for the work, and those of the work itself.
struct AllWishes {
  std::vector<ScopedWish> held;    // strongest first
  std::vector<ExplainedWish> all;  // so far as leases hold for other work: elsewhere, and why
};

// Why a lease is for other work; "" where it is for this.
std::string WhyOtherWork(const LeaseScope& scope, const WorkIdentity& work) {
  const auto unmet = scope.Unmet(work);
  if (unmet == ScopeKind::kJob) return "is for job " + *scope.job;
  if (unmet == ScopeKind::kTenant) return "is for tenant " + *scope.tenant;
  if (unmet == ScopeKind::kModel) return "is for model " + *scope.model;
  // Without an id nobody knows whether the work is in the share.
  if (!scope.share || (!unmet && !work.id.empty())) return "";
  return "is for " + PercentText(*scope.share) + " of all jobs" +
         (work.id.empty() ? ": name a job" : ", and this one is not among them");
}

std::string WhyOtherPlace(const PlaceScope& where, const Place& place) {
  const auto unmet = where.Unmet(place);
  if (!unmet) return "";
  const auto text = [](const char* kind, const std::string& held, const std::string& here) {
    return std::string("holds for ") + kind + " " + held + ", and this is " + here;
  };
  switch (*unmet) {
    case ScopeKind::kLayers:
      return text("layers", ToText(*where.layers),
                  "layer " + std::to_string(place.layer.value_or(0)));
    case ScopeKind::kSteps:
      return text("steps", ToText(*where.steps), "step " + std::to_string(place.step.value_or(0)));
    case ScopeKind::kSigma:
      if (!place.sigma) return "holds for sigma " + ToText(*where.sigma) + ": name a sigma";
      return text("sigma", ToText(*where.sigma), ToText(SigmaRange{*place.sigma, *place.sigma}));
    case ScopeKind::kRole:
      return "holds for " + std::string(AttentionRoleName(*where.role)) + " attention";
    case ScopeKind::kJob:
    case ScopeKind::kTenant:
    case ScopeKind::kShare:
    case ScopeKind::kModel:
      break;  // of work, not of a place
  }
  return "";
}

std::string ScopeText(const LeaseScope& scope) {
  return scope == LeaseScope() ? "" : ToText(scope);
}

AllWishes WishesOfAll(const PlannerSetting& setting, const PlannerSubject& subject,
                      const LeaseList& leases) {
  const WorkIdentity work = {setting.model, subject.tenant, subject.id};
  LeaseList held;
  AllWishes wishes;
  for (const Lease& lease : leases) {
    ExplainedWish& one = wishes.all.emplace_back(
        Wish{SelectionSource::kForce, lease.backend, lease.parameters, lease.id});
    one.scope = ScopeText(lease.scope);
    one.reason = WhyOtherWork(lease.scope, work);
    if (one.reason.empty()) held.push_back(lease);
  }
  wishes.held = WishesOf(setting, subject, held);
  for (size_t i = held.size(); i < wishes.held.size(); ++i) {
    const ScopedWish& own = wishes.held[i];
    wishes.all.push_back({own.wish, ScopeText({.where = own.where})});
  }
  return wishes;
}

// What becomes of all of them at a place, of which `here` are the ones that hold there.
std::vector<ExplainedWish> TellAll(const AllWishes& wishes, const Place& place,
                                   const std::vector<ExplainedWish>& here) {
  std::vector<ExplainedWish> told = wishes.all;
  auto held = wishes.held.begin();
  for (ExplainedWish& one : told) {
    if (!one.reason.empty()) continue;  // for other work
    const PlaceScope& where = (held++)->where;
    const auto found =
        std::ranges::find_if(here, [&](const auto& h) { return IsSame(h.wish, one.wish); });
    if (found != here.end()) {
      one.outcome = found->outcome;
      one.reason = found->reason;
      continue;
    }
    one.reason = WhyOtherPlace(where, place);
    if (!one.reason.empty()) continue;
    one.outcome = WishOutcome::kHidden;
    one.reason = "an earlier rule of its schedule holds here";
  }
  for (const ExplainedWish& one : here) {
    if (one.wish.source == SelectionSource::kAutomatic) told.push_back(one);
  }
  return told;
}

struct Told {
  Interval layers;
  std::vector<ExplainedWish> wishes;
};

// One story of each wish: what becomes of it at best, and where that is not so of all layers,
// where.
std::vector<ExplainedWish> Merged(const std::vector<Told>& told) {
  std::vector<ExplainedWish> merged = told.front().wishes;
  for (size_t i = 0; i < merged.size(); ++i) {
    for (const Told& one : told) {
      if (one.wishes[i].outcome < merged[i].outcome) merged[i] = one.wishes[i];
    }
    std::string layers;
    size_t alike = 0;
    for (const Told& one : told) {
      if (one.wishes[i].outcome != merged[i].outcome) continue;
      ++alike;
      layers += (layers.empty() ? "in layers " : ", ") + ToText(one.layers);
    }
    if (alike == told.size()) continue;
    merged[i].reason += (merged[i].reason.empty() ? "" : ", ") + layers;
  }
  return merged;
}

// Of the layers, those that the question is about.
std::vector<LayerWishes> Asked(const RoleWishes& wishes, const ExplainedPlace& place) {
  if (!place.layer) return wishes.by_layers;
  for (const LayerWishes& here : wishes.by_layers) {
    if (here.layers.Has(*place.layer)) return {{{*place.layer, *place.layer}, here.wishes}};
  }
  return {};
}

ExplainedLayers Selected(const PlannerSetting& setting, const PlannerSubject& subject,
                         const AttentionSpec& spec, const LayerWishes& here,
                         const Objection& objection) {
  ExplainedLayers selected{here.layers, std::nullopt, std::nullopt};
  const auto error = Caught(
      [&] { selected.selection = SelectFor(setting, subject, spec, here.wishes, objection); });
  // What is wrong with the options themselves is the caller's to mend, as at Submit.
  if (error && error->code() == StatusCode::kInvalidArgument) throw *error;
  if (error) selected.error = ToJobError(*error);
  return selected;
}

bool RunsAlike(const ExplainedLayers& a, const ExplainedLayers& b) {
  if (!a.selection || !b.selection) return !a.selection && !b.selection;
  return *a.selection == *b.selection;
}

void Append(ExplainedLayers layers, std::vector<ExplainedLayers>* all) {
  if (all->empty() || !RunsAlike(all->back(), layers)) return all->push_back(std::move(layers));
  all->back().layers.last = layers.layers.last;
}

std::vector<Explanation::Candidate> CandidatesOf(const PlannerSetting& setting,
                                                 const AttentionSpec& spec,
                                                 const Objection& objection) {
  std::vector<Explanation::Candidate> candidates;
  for (const BackendRegistry::Entry& entry : setting.registry->entries()) {
    auto why_not = setting.registry->WhyNot(entry.id, spec, setting.device);
    if (!why_not) why_not = objection(entry.id);
    candidates.push_back({entry.id, spec.Lists(entry.id), std::move(why_not)});
  }
  return candidates;
}

MeasuredChoice ChoiceBy(const MeasuredOrder& order, const MeasuredKey& key, AttnBackend backend) {
  MeasuredChoice choice;
  choice.key = key;
  const auto row = std::ranges::find(order.fastest_first, backend, &MeasuredRow::backend);
  if (row == order.fastest_first.end()) return choice;
  choice.row = *row;
  choice.measured_at = order.measured_at;
  return choice;
}

// Of the layers that run, those that most do; what fails any fails the work.
void Conclude(Explanation* explanation) {
  int64_t most = 0;
  for (const ExplainedLayers& layers : explanation->layers) {
    if (layers.error && !explanation->error) explanation->error = layers.error;
    if (!layers.selection || layers.layers.size() <= most) continue;
    most = layers.layers.size();
    explanation->selection = *layers.selection;
  }
}

std::string RunText(const ExplainedLayers& layers) {
  if (!layers.selection) return "nothing (" + layers.error->message + ")";
  const Wish& granted = layers.selection->granted;
  return std::string(AttnBackendName(granted.backend)) +
         (granted.parameters.empty() ? "" : " with " + granted.parameters);
}

const ExplainedLayers& At(const Explanation& explanation, int64_t layer) {
  return *std::ranges::find_if(explanation.layers,
                               [&](const ExplainedLayers& one) { return one.layers.Has(layer); });
}

}  // namespace

std::vector<ExplainedWish> ExplainWishes(const PlannerSetting& setting, const AttentionSpec& spec,
                                         std::span<const Wish> wishes,
                                         std::span<const PreferredBackend> preferred,
                                         const Objection& objection, const Selection* selection) {
  const BackendRegistry& registry = *setting.registry;
  const DeviceInfo& device = setting.device;
  Teller teller(selection);
  for (const Wish& wish : wishes) {
    teller.Tell(wish, [&] { return WhyNotGranted(wish, spec, registry, device, objection); });
  }
  for (const PreferredBackend& one : preferred) {
    if (!spec.Lists(one.backend)) continue;
    const Wish wish{SelectionSource::kAutomatic, one.backend, "", ""};
    teller.Tell(wish, [&] { return WhyNotGranted(wish, spec, registry, device, objection); });
  }
  for (const BackendRegistry::Entry& entry : registry.entries()) {
    if (!entry.automatic || !spec.Lists(entry.id)) continue;
    if (std::ranges::count(preferred, entry.id, &PreferredBackend::backend) > 0) continue;
    const Wish wish{SelectionSource::kAutomatic, entry.id, "", ""};
    teller.Tell(wish, [&] {
      auto reason = WhyNotGranted(wish, spec, registry, device, objection);
      return reason ? reason : registry.WhyYields(entry.id, spec, device);
    });
  }
  return teller.Take();
}

Explanation ExplainRole(const PlannerSetting& setting, const PlannerSubject& subject,
                        const AttentionSpec& spec, const LeaseList& leases,
                        const ExplainedPlace& place) {
  const Objection objection = OpenBreakers(setting, spec);
  Explanation explanation;
  explanation.role = spec.role;
  explanation.spec = spec;
  explanation.candidates = CandidatesOf(setting, spec, objection);
  const auto refused = Caught([&] { CheckSchedule(setting, subject, {spec}); });
  if (refused && refused->code() == StatusCode::kInvalidArgument) throw *refused;
  if (refused) explanation.error = ToJobError(*refused);
  const AllWishes wishes = WishesOfAll(setting, subject, leases);
  const RoleWishes at = WishesAt(wishes.held, spec.role, setting.LayersOf(spec.role), place.step);
  const MeasuredKey key = MeasuredKeyOf(subject, spec);
  const MeasuredOrder order = OrderFor(setting, subject, spec);
  const std::vector<PreferredBackend> preferred = order.For(key);
  std::vector<Told> told;
  for (const LayerWishes& here : Asked(at, place)) {
    ExplainedLayers selected = Selected(setting, subject, spec, here, objection);
    const Selection* selection = selected.selection ? &*selected.selection : nullptr;
    const Place first = {spec.role, here.layers.first, place.step.step, place.step.sigma};
    const auto here_told =
        ExplainWishes(setting, spec, here.wishes, preferred, objection, selection);
    told.push_back({here.layers, TellAll(wishes, first, here_told)});
    Append(std::move(selected), &explanation.layers);
  }
  explanation.wishes = Merged(told);
  Conclude(&explanation);
  const Wish& granted = explanation.selection.granted;
  if (!explanation.error && InLoop(spec.role) && granted.source == SelectionSource::kAutomatic) {
    explanation.measured = ChoiceBy(order, key, granted.backend);
    if (!explanation.measured->row) {
      explanation.measured->note = setting.measurements->WhyIgnored(key);
    }
  }
  return explanation;
}

std::string WhatChanges(const Explanation& without, const Explanation& with,
                        const std::string& lease_id) {
  std::set<int64_t> firsts;
  for (const auto* one : {&without, &with}) {
    for (const ExplainedLayers& layers : one->layers) firsts.insert(layers.layers.first);
  }
  const int64_t last = with.layers.back().layers.last;
  std::string text;
  for (auto first = firsts.begin(); first != firsts.end(); ++first) {
    const std::string before = RunText(At(without, *first)), after = RunText(At(with, *first));
    if (before == after) continue;
    const auto next = std::next(first);
    const Interval layers = {*first, next == firsts.end() ? last : *next - 1};
    text += (text.empty() ? "" : "; ") + after + " would run instead of " + before;
    if (firsts.size() > 1) text += " in layers " + ToText(layers);
  }
  if (!text.empty()) return text;
  const auto own = std::ranges::find_if(
      with.wishes, [&](const ExplainedWish& one) { return one.wish.lease_id == lease_id; });
  if (own == with.wishes.end()) return "nothing would change";
  if (own->outcome == WishOutcome::kGranted) {
    return "the same would run, by this lease" + (own->reason.empty() ? "" : " " + own->reason);
  }
  return "nothing would change: the lease " +
         (own->outcome == WishOutcome::kElsewhere
              ? own->reason
              : "would be " + std::string(WishOutcomeName(own->outcome)) + ": " + own->reason);
}

}  // namespace denoised
