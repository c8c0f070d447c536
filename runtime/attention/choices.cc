#include "runtime/attention/choices.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "runtime/attention/explain.h"

namespace denoised {
namespace {

std::string FieldOf(size_t rule) { return "attention.schedule[" + std::to_string(rule) + "]"; }

void CheckHoldsSomewhere(const AttentionRule& rule, size_t index, const PlannerSetting& setting,
                         const PlannerSubject& subject) {
  const PlaceScope& where = rule.where;
  CheckPlaces(where, FieldOf(index));
  if (where.role && !InLoop(*where.role)) {
    throw InvalidField(FieldOf(index) + ".role", "wanted self or cross");
  }
  if (where.steps && where.steps->first >= subject.num_steps) {
    throw InvalidField(
        FieldOf(index) + ".steps",
        "names none of the " + std::to_string(subject.num_steps) + " steps, which count from 0");
  }
  const int64_t layers = setting.LayersOf(where.role.value_or(AttentionRole::kSelf));
  if (where.layers && where.layers->first >= layers) {
    throw InvalidField(FieldOf(index) + ".layers", "names none of the " + std::to_string(layers) +
                                                       " layers, which count from 0");
  }
}

// Against one role.
void CheckRule(const AttentionRule& rule, size_t index, const PlannerSetting& setting,
               const AttentionSpec& spec) {
  auto why_not = setting.registry->WhyNot(rule.backend, spec, setting.device);
  const bool listed = spec.Lists(rule.backend);
  if (listed && !why_not) {
    try {
      setting.registry->CanonicalParameters(rule.backend, spec, rule.parameters_json);
    } catch (const Error& error) {
      throw Renamed(error, "attention.", FieldOf(index) + ".");
    }
    why_not = OpenBreakers(setting, spec)(rule.backend);
    if (!why_not) return;
  }
  if (rule.mode != SelectionMode::kStrict || !IsActionable(rule.backend, spec)) return;
  const std::string reason = listed ? *why_not : "it is not among what these layers list";
  ExplainedWish refused{{SelectionSource::kRequest, rule.backend, "", "", static_cast<int>(index)}};
  refused.outcome = WishOutcome::kRefused;
  refused.reason = reason;
  throw Error(StatusCode::kFailedPrecondition,
              FieldOf(index) + ".backend: " + std::string(AttnBackendName(rule.backend)) +
                  " cannot serve " + std::string(AttentionRoleName(spec.role)) +
                  " attention: " + reason,
              FieldOf(index) + ".backend", "BACKEND_REFUSED")
      .Detailed(ToText({refused}));
}

}  // namespace

MeasuredKey MeasuredKeyOf(const PlannerSubject& subject, const AttentionSpec& spec) {
  return KeyOf(spec, subject.rows);
}

std::vector<ScopedWish> WishesOf(const PlannerSetting& setting, const PlannerSubject& subject,
                                 const LeaseList& leases) {
  const AttentionOptions& options = subject.attention;
  const bool given = !options.parameters_json.empty() && options.parameters_json != "{}";
  if (given && !options.backend) {
    throw InvalidField("attention.parameters", "parameters need attention.backend to be named");
  }
  SelectionSubject wishes;
  wishes.work = {setting.model, subject.tenant, subject.id};
  if (options.backend) {
    wishes.request = Wish{SelectionSource::kRequest, *options.backend, options.parameters_json, ""};
  }
  if (setting.model_default) {
    wishes.model_default = Wish{SelectionSource::kModelDefault, *setting.model_default,
                                setting.model_default_parameters_json, ""};
  }
  wishes.request_rules = options.schedule;
  wishes.model_rules = setting.model_rules;
  return setting.policy->WishesFor(wishes, leases);
}

std::shared_ptr<const LeaseList> LeasesOf(const PlannerSetting& setting,
                                          const PlannerSubject& subject) {
  return subject.pinned ? subject.pinned : setting.policy->leases();
}

MeasuredOrder OrderFor(const PlannerSetting& setting, const PlannerSubject& subject,
                       const AttentionSpec& spec) {
  if (!InLoop(spec.role)) return {};
  Measurements& measurements = *setting.measurements;
  if (!subject.order) {
    return measurements.OrderOf(MeasuredKeyOf(subject, spec), *setting.registry);
  }
  return subject.order->Of(spec, subject.rows, measurements, *setting.registry);
}

Objection OpenBreakers(const PlannerSetting& setting, const AttentionSpec& spec) {
  return [&](AttnBackend backend) { return setting.guard->breakers().WhyNot(backend, spec); };
}

Selection SelectFor(const PlannerSetting& setting, const PlannerSubject& subject,
                    const AttentionSpec& spec, std::span<const Wish> wishes,
                    const Objection& objection) {
  const std::vector<PreferredBackend> preferred =
      OrderFor(setting, subject, spec).For(MeasuredKeyOf(subject, spec));
  try {
    return Select(spec, wishes, *setting.registry, setting.device, subject.attention.mode,
                  preferred, objection);
  } catch (const Error& error) {
    if (error.reason() != "BACKEND_REFUSED") throw;
    throw Error(error).Detailed(
        ToText(ExplainWishes(setting, spec, wishes, preferred, objection, nullptr)));
  }
}

std::vector<LayerChoice> Choose(const PlannerSetting& setting, const PlannerSubject& subject,
                                const AttentionSpec& spec, const RoleWishes& wishes,
                                const Objection& objection) {
  std::vector<LayerChoice> choices;
  for (const LayerWishes& here : wishes.by_layers) {
    choices.push_back(
        {here.layers, here.wishes, SelectFor(setting, subject, spec, here.wishes, objection)});
  }
  return choices;
}

// What decides where nothing stronger holds, for each wish in turn: until one that holds
// everywhere.
std::vector<Wish> ChoicesNow(const PlannerSetting& setting, const PlannerSubject& subject,
                             const AttentionSpec& spec, const Objection& objection) {
  std::vector<Wish> wishes;
  size_t scoped = 0;  // wishes that do not hold everywhere
  bool everywhere = false;
  for (const ScopedWish& one : WishesOf(setting, subject, *LeasesOf(setting, subject))) {
    if (one.where.role && *one.where.role != spec.role) continue;
    PlaceScope where = one.where;
    where.role.reset();
    if (!InLoop(spec.role) && where != PlaceScope()) continue;
    everywhere |= where == PlaceScope();
    if (!everywhere) ++scoped;
    wishes.push_back(one.wish);
  }
  InheritParameters(&wishes);
  std::vector<Wish> all;
  for (size_t first = 0; first <= scoped; ++first) {
    Wish granted =
        SelectFor(setting, subject, spec, std::span(wishes).subspan(first), objection).granted;
    const bool known = std::ranges::any_of(all, [&](const Wish& other) {
      return other.backend == granted.backend && other.parameters == granted.parameters;
    });
    if (!known) all.push_back(std::move(granted));
  }
  return all;
}

std::function<AttentionCost(const AttentionSpec&, int64_t)> CostNow(PlannerSetting setting,
                                                                    PlannerSubject subject) {
  return [setting = std::move(setting), subject = std::move(subject)](const AttentionSpec& spec,
                                                                      int64_t rows) {
    AttentionCost most;
    std::vector<Wish> all = ChoicesNow(setting, subject, spec);
    std::ranges::move(ChoicesNow(setting, subject, spec, OpenBreakers(setting, spec)),
                      std::back_inserter(all));
    for (const Wish& granted : all) {
      const AttentionBackend* backend = setting.registry->Find(granted.backend)->backend;
      const AttentionCost cost = backend->Estimate(spec, granted.parameters, rows);
      most.bytes = std::max(most.bytes, cost.bytes);
      most.multiply_adds = std::max(most.multiply_adds, cost.multiply_adds);
    }
    return most;
  };
}

void CheckSchedule(const PlannerSetting& setting, const PlannerSubject& subject,
                   const std::vector<AttentionSpec>& specs) {
  const std::vector<AttentionRule>& schedule = subject.attention.schedule;
  if (schedule.size() > AttentionOptions::kMaxRules) {
    throw InvalidField("attention.schedule", "at most " +
                                                 std::to_string(AttentionOptions::kMaxRules) +
                                                 " rules, got " + std::to_string(schedule.size()));
  }
  for (size_t i = 0; i < schedule.size(); ++i) {
    CheckHoldsSomewhere(schedule[i], i, setting, subject);
    for (const AttentionSpec& spec : specs) {
      if (schedule[i].where.role.value_or(spec.role) != spec.role) continue;
      CheckRule(schedule[i], i, setting, spec);
    }
  }
}

}  // namespace denoised
