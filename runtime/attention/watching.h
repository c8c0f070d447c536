// What the calls of a plan's segment are compared with: live shadows, and the budget of the lease
// that it runs under.
#ifndef DENOISED_RUNTIME_ATTENTION_WATCHING_H_
#define DENOISED_RUNTIME_ATTENTION_WATCHING_H_

#include <memory>

#include "runtime/attention/choices.h"
#include "runtime/attention/watched_calls.h"

namespace denoised {

// A role at a step of one piece of work.
struct Watching {
  const PlannerSetting& setting;  // with shadows
  const PlannerSubject& subject;
  const AttentionSpec& spec;
  StepPlace place;  // the sigma unset outside of the denoising loop
  int64_t num_steps;
  const LeaseList& leases;
};

// Whether a lease with a budget was granted for one of the choices.
bool AnyBudget(const std::vector<LayerChoice>& choices, const LeaseList& leases);

// Null where nothing is. Engine thread.
std::shared_ptr<const WatchedCalls> WatchedBy(const Watching& watching, const LayerChoice& choice);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_WATCHING_H_
