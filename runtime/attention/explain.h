// Answers what would serve a role, and what becomes of every wish. Any thread.
#ifndef DENOISED_RUNTIME_ATTENTION_EXPLAIN_H_
#define DENOISED_RUNTIME_ATTENTION_EXPLAIN_H_

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/attention/choices.h"
#include "runtime/explanation.h"

namespace denoised {

// Of wishes that hold at a place, strongest first, and of the backends that automatic selection
// tries after them: `preferred`, then the registry's, as Select has them. `selection` is what came
// of them; null where they came to nothing.
std::vector<ExplainedWish> ExplainWishes(const PlannerSetting& setting, const AttentionSpec& spec,
                                         std::span<const Wish> wishes,
                                         std::span<const PreferredBackend> preferred,
                                         const Objection& objection, const Selection* selection);

// Where a question is about.
struct ExplainedPlace {
  std::optional<int64_t> layer;  // unset: all of the role
  StepPlace step;
};

// Of `leases`, those that are not for this work are told of too. A subject without an id is in no
// share. Throws what is wrong with the subject's options (INVALID_ARGUMENT); what would fail the
// work is the explanation's error.
Explanation ExplainRole(const PlannerSetting& setting, const PlannerSubject& subject,
                        const AttentionSpec& spec, const LeaseList& leases,
                        const ExplainedPlace& place);

// One sentence: what is other in `with` (a lease of this id added) than in `without`.
std::string WhatChanges(const Explanation& without, const Explanation& with,
                        const std::string& lease_id);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_EXPLAIN_H_
