#include "runtime/attention/place_wishes.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace denoised {
namespace {

// Narrows `steps`, which hold `step`, to those that lie as it does to `scope`.
void Narrow(const Interval& scope, int64_t step, Interval* steps) {
  if (step < scope.first) {
    steps->last = std::min(steps->last, scope.first - 1);
  } else if (step > scope.last) {
    steps->first = std::max(steps->first, scope.last + 1);
  } else {
    steps->first = std::max(steps->first, scope.first);
    steps->last = std::min(steps->last, scope.last);
  }
}

void Narrow(const SigmaRange& scope, double sigma, SigmaRange* range) {
  constexpr double kFar = std::numeric_limits<double>::infinity();
  if (sigma < scope.low) {
    range->high = std::min(range->high, std::nextafter(scope.low, -kFar));
  } else if (sigma > scope.high) {
    range->low = std::max(range->low, std::nextafter(scope.high, kFar));
  } else {
    range->low = std::max(range->low, scope.low);
    range->high = std::min(range->high, scope.high);
  }
}

void NarrowTo(const PlaceScope& where, const StepPlace& place, RoleWishes* wishes) {
  if (where.steps && place.step) Narrow(*where.steps, *place.step, &wishes->steps);
  if (where.sigma && place.sigma) Narrow(*where.sigma, *place.sigma, &wishes->sigma);
}

// The wishes of those in `held` that hold for the layer too.
std::vector<Wish> WishesOf(const std::vector<const ScopedWish*>& held, int64_t layer) {
  std::vector<Wish> wishes;
  std::set<SelectionSource> ruled;  // by a rule already
  for (const ScopedWish* scoped : held) {
    if (scoped->where.layers && !scoped->where.layers->Has(layer)) continue;
    if (scoped->wish.rule && !ruled.insert(scoped->wish.source).second) continue;
    wishes.push_back(scoped->wish);
  }
  InheritParameters(&wishes);
  return wishes;
}

// Where one of them begins or has ended, in order, 0 among them.
std::set<int64_t> FirstLayers(const std::vector<const ScopedWish*>& held, int64_t num_layers) {
  std::set<int64_t> first = {0};
  for (const ScopedWish* scoped : held) {
    if (!scoped->where.layers) continue;
    first.insert(scoped->where.layers->first);
    if (scoped->where.layers->last < num_layers) first.insert(scoped->where.layers->last + 1);
  }
  first.erase(first.lower_bound(num_layers), first.end());
  return first;
}

}  // namespace

void InheritParameters(std::vector<Wish>* wishes) {
  for (auto weaker = wishes->rbegin(); weaker != wishes->rend(); ++weaker) {
    for (auto stronger = weaker + 1; stronger != wishes->rend(); ++stronger) {
      if (stronger->backend != weaker->backend) continue;
      if (stronger->parameters.empty()) stronger->parameters = weaker->parameters;
      break;  // what is stronger still has it from that one
    }
  }
}

RoleWishes WishesAt(const std::vector<ScopedWish>& wishes, AttentionRole role, int64_t num_layers,
                    const StepPlace& place) {
  RoleWishes at;
  std::vector<const ScopedWish*> held;  // whatever the layer
  for (const ScopedWish& scoped : wishes) {
    if (scoped.where.role && *scoped.where.role != role) continue;
    if (scoped.where.layers && !InLoop(role)) continue;
    NarrowTo(scoped.where, place, &at);
    PlaceScope anywhere = scoped.where;
    anywhere.layers.reset();
    if (anywhere.Holds({role, 0, place.step, place.sigma})) held.push_back(&scoped);
  }
  for (const int64_t first : FirstLayers(held, num_layers)) {
    std::vector<Wish> here = WishesOf(held, first);
    if (!at.by_layers.empty()) {
      LayerWishes& before = at.by_layers.back();
      before.layers.last = first - 1;
      if (before.wishes == here) continue;
    }
    at.by_layers.push_back({{first, num_layers - 1}, std::move(here)});
  }
  at.by_layers.back().layers.last = num_layers - 1;
  return at;
}

}  // namespace denoised
