// Wishes that hold for some layers and steps, laid out over the layers of one role at one step.
// Torch-free plain values.
#ifndef DENOISED_RUNTIME_ATTENTION_PLACE_WISHES_H_
#define DENOISED_RUNTIME_ATTENTION_PLACE_WISHES_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "backends/selector.h"
#include "runtime/selection_policy.h"

namespace denoised {

// Where a step stands. Unset outside of the denoising loop.
struct StepPlace {
  std::optional<int64_t> step;
  std::optional<double> sigma;
};

// Neighbouring layers that wish alike.
struct LayerWishes {
  Interval layers;
  std::vector<Wish> wishes;  // strongest first
  bool operator==(const LayerWishes&) const = default;
};

struct RoleWishes {
  std::vector<LayerWishes> by_layers;  // every layer of the role, in order
  // At all these steps, and noise levels, it is the same.
  Interval steps = {0, std::numeric_limits<int64_t>::max()};
  SigmaRange sigma = {0, std::numeric_limits<double>::infinity()};

  bool HoldsAt(const StepPlace& place) const {
    return (!place.step || steps.Has(*place.step)) && (!place.sigma || sigma.Has(*place.sigma));
  }
};

// A wish without parameters has those of the next weaker one for the same backend: naming a backend
// never loses what was set for it, and `{}` asks for its own defaults.
void InheritParameters(std::vector<Wish>* wishes);

// `wishes` strongest first. Of a source's rules the first that holds for a place counts. Parameters
// are inherited.
RoleWishes WishesAt(const std::vector<ScopedWish>& wishes, AttentionRole role, int64_t num_layers,
                    const StepPlace& place);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_PLACE_WISHES_H_
