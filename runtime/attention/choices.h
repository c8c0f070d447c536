// What would serve the layers of a model: the one question behind a step, the check at Submit,
// estimates and Explain. Any thread.
#ifndef DENOISED_RUNTIME_ATTENTION_CHOICES_H_
#define DENOISED_RUNTIME_ATTENTION_CHOICES_H_

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backends/attention_cost.h"
#include "backends/registry.h"
#include "runtime/attention/call_guard.h"
#include "runtime/attention/measurements.h"
#include "runtime/attention/place_wishes.h"
#include "runtime/attention/plan_cache.h"
#include "runtime/job.h"
#include "runtime/selection_policy.h"

namespace denoised {

// What stays the same for all work of a model.
struct PlannerSetting {
  const BackendRegistry* registry;
  const SelectionPolicy* policy;
  DeviceInfo device;
  std::string model = {};
  std::optional<AttnBackend> model_default = std::nullopt;
  std::string model_default_parameters_json = {};  // belongs to model_default
  std::vector<AttentionRule> model_rules = {};     // go before model_default
  // How many layers each role has; 1 outside of the loop.
  std::array<int64_t, kNumAttentionRoles> layers = {1, 1, 1, 1};
  // Around the calls of any of them.
  std::shared_ptr<CallGuard> guard = std::make_shared<CallGuard>();
  // What builders made for any of them.
  std::shared_ptr<PlanCache> plans = std::make_shared<PlanCache>();
  // Of all models of an engine.
  std::shared_ptr<Measurements> measurements = std::make_shared<Measurements>();

  int64_t LayersOf(AttentionRole role) const { return layers[static_cast<size_t>(role)]; }
};

// Whose attention it is, and what they ask for.
struct PlannerSubject {
  AttentionOptions attention = {};
  std::string tenant = {};
  std::string id = {};    // as WorkIdentity
  int64_t num_steps = 1;  // of its denoising loop
  bool pin = false;       // the leases of its beginning hold to its end
  // The leases that decide for it whatever the policy has by now; null: those that it has.
  std::shared_ptr<const LeaseList> pinned = nullptr;
  int64_t rows = 1;  // that it brings to a call
  // What it was given once it began; null before: then the measurements of now count.
  std::shared_ptr<AutomaticOrder> order = {};
};

// Neighbouring layers of a role that wish alike, and what serves them.
struct LayerChoice {
  Interval layers;
  std::vector<Wish> wishes;  // that hold there, strongest first
  Selection selection;
};

// The leases that decide for this work.
std::shared_ptr<const LeaseList> LeasesOf(const PlannerSetting& setting,
                                          const PlannerSubject& subject);

// Of a call of the denoising loop: what measurements are looked up by.
MeasuredKey MeasuredKeyOf(const PlannerSubject& subject, const AttentionSpec& spec);

// Every wish that can hold for a role of this work. Throws InvalidField("attention.parameters")
// where parameters come without a backend.
std::vector<ScopedWish> WishesOf(const PlannerSetting& setting, const PlannerSubject& subject,
                                 const LeaseList& leases);

// What automatic selection tries first for it, by what was measured. That is calls of the denoising
// loop: others have masks and shapes of their own.
MeasuredOrder OrderFor(const PlannerSetting& setting, const PlannerSubject& subject,
                       const AttentionSpec& spec);
// Why the model's backends may not serve the spec now although they could: open circuit breakers.
// Good for as long as the setting and the spec are.
Objection OpenBreakers(const PlannerSetting& setting, const AttentionSpec& spec);

// What serves a layer where these wishes hold, strongest first. Throws what Select throws; a
// refusal (BACKEND_REFUSED) has in its details what became of each wish.
Selection SelectFor(const PlannerSetting& setting, const PlannerSubject& subject,
                    const AttentionSpec& spec, std::span<const Wish> wishes,
                    const Objection& objection);

// What serves each layer of the role where `wishes` hold. Throws what SelectFor throws.
std::vector<LayerChoice> Choose(const PlannerSetting& setting, const PlannerSubject& subject,
                                const AttentionSpec& spec, const RoleWishes& wishes,
                                const Objection& objection);

// Everything that any layer of the role may be served by at any step as wishes are now, each once,
// the strongest first. Without an objection: as if no circuit breaker were open.
std::vector<Wish> ChoicesNow(const PlannerSetting& setting, const PlannerSubject& subject,
                             const AttentionSpec& spec, const Objection& objection = {});

// What a call takes with what would serve it now, or would where no circuit breaker is open; of
// several the most.
std::function<AttentionCost(const AttentionSpec&, int64_t rows)> CostNow(PlannerSetting setting,
                                                                         PlannerSubject subject);

// Throws INVALID_ARGUMENT naming "attention.schedule[i].<field>" where a rule of the request can
// hold for nothing, or has parameters that its backend refuses; FAILED_PRECONDITION (reason
// BACKEND_REFUSED) naming "attention.schedule[i].backend" where a strict one cannot be granted for
// layers that it is for.
void CheckSchedule(const PlannerSetting& setting, const PlannerSubject& subject,
                   const std::vector<AttentionSpec>& specs);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_CHOICES_H_
