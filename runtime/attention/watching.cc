#include "runtime/attention/watching.h"

#include <algorithm>
#include <utility>

#include "runtime/attention/shadows.h"
#include "runtime/caught.h"

namespace denoised {
namespace {

// Nothing where it cannot serve the layers with these parameters.
std::optional<Wish> Fit(const Watching& w, AttnBackend id, const std::string& parameters) {
  const BackendRegistry& registry = *w.setting.registry;
  if (!w.spec.Lists(id) || registry.WhyNot(id, w.spec, w.setting.device)) return std::nullopt;
  Wish wish{SelectionSource::kForce, id, "", ""};
  const auto unfit =
      Caught([&] { wish.parameters = registry.CanonicalParameters(id, w.spec, parameters); });
  return unfit ? std::nullopt : std::optional(std::move(wish));
}

// `wish` with canonical parameters.
ComparedBackend Compared(const Watching& w, const Wish& wish) {
  const AttentionBackend* backend = w.setting.registry->Find(wish.backend)->backend;
  const auto maker = w.setting.plans->Find(*backend, w.spec, wish.parameters);
  return {backend, wish.backend, maker->Make(w.place.step.value_or(0), w.num_steps)};
}

bool Same(const Wish& a, const Wish& b) {
  return a.backend == b.backend && a.parameters == b.parameters;
}

// The layers of a segment that a scope has too.
std::optional<Interval> Common(const Interval& layers, const std::optional<Interval>& scope) {
  if (!scope) return layers;
  const Interval both{std::max(layers.first, scope->first), std::min(layers.last, scope->last)};
  return both.first <= both.last ? std::optional(both) : std::nullopt;
}

// Some layer aside.
bool HoldsHere(PlaceScope where, const Watching& w) {
  if (!InLoop(w.spec.role) && (where.layers || where.steps || where.sigma)) return false;
  where.layers.reset();
  return where.Holds({w.spec.role, std::nullopt, w.place.step, w.place.sigma});
}

void AddShadow(const Watching& w, const LayerChoice& choice, const std::string& id,
               const ShadowRequest& request, WatchedCalls* calls) {
  const auto layers = Common(choice.layers, request.scope.where.layers);
  if (!layers || !HoldsHere(request.scope.where, w)) return;
  const Wish& runs = choice.selection.granted;
  const auto candidate = Fit(w, request.candidate, request.parameters);
  const auto baseline = request.baseline ? Fit(w, *request.baseline, "") : std::optional(runs);
  if (!candidate || !baseline || Same(*candidate, *baseline)) return;
  // What runs anyway need not run again.
  const auto side = [&](const Wish& wish) {
    return Same(wish, runs) ? ComparedBackend() : Compared(w, wish);
  };
  calls->comparisons.push_back(
      {id, std::nullopt, side(*candidate), side(*baseline), *layers, request.share});
}

// What would run without leases that have a budget, where that is another.
void AddBudget(const Watching& w, const LayerChoice& choice, WatchedCalls* calls) {
  const Wish& granted = choice.selection.granted;
  const auto lease = std::ranges::find(w.leases, granted.lease_id, &Lease::id);
  if (lease == w.leases.end() || !lease->budget) return;
  LeaseList others = w.leases;
  std::erase_if(others, [](const Lease& one) { return one.budget.has_value(); });
  const StepPlace at = InLoop(w.spec.role) ? w.place : StepPlace();
  const RoleWishes wishes = WishesAt(WishesOf(w.setting, w.subject, others), w.spec.role,
                                     w.setting.LayersOf(w.spec.role), at);
  for (const LayerChoice& without :
       Choose(w.setting, w.subject, w.spec, wishes, OpenBreakers(w.setting, w.spec))) {
    const auto layers = Common(choice.layers, without.layers);
    if (!layers || Same(without.selection.granted, granted)) continue;
    Comparison comparison{lease->id, lease->budget, ComparedBackend(), ComparedBackend(), *layers};
    comparison.baseline = Compared(w, without.selection.granted);
    calls->comparisons.push_back(std::move(comparison));
  }
}

}  // namespace

bool AnyBudget(const std::vector<LayerChoice>& choices, const LeaseList& leases) {
  return std::ranges::any_of(choices, [&](const LayerChoice& choice) {
    const std::string& id = choice.selection.granted.lease_id;
    if (id.empty()) return false;
    const auto lease = std::ranges::find(leases, id, &Lease::id);
    return lease != leases.end() && lease->budget.has_value();
  });
}

std::shared_ptr<const WatchedCalls> WatchedBy(const Watching& w, const LayerChoice& choice) {
  auto calls = std::make_shared<WatchedCalls>();
  calls->role = w.spec.role;
  calls->sigma_band = SigmaBand(w.place.sigma);
  calls->guard = w.setting.guard;
  const WorkIdentity work{w.setting.model, w.subject.tenant, w.subject.id};
  for (const auto& [id, request] : w.setting.guard->shadows()->Live(work)) {
    Caught([&] { AddShadow(w, choice, id, request, calls.get()); });  // no work fails by it
  }
  // Of a decoder's chunk nothing can be done again.
  if (w.spec.role != AttentionRole::kVae) {
    Caught([&] { AddBudget(w, choice, calls.get()); });  // strict wishes may be refused without it
  }
  return calls->comparisons.empty() ? nullptr : calls;
}

}  // namespace denoised
