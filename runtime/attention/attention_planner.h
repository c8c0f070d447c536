// Chooses the backend of each role for each step of one piece of work, and keeps its receipt.
#ifndef DENOISED_RUNTIME_ATTENTION_ATTENTION_PLANNER_H_
#define DENOISED_RUNTIME_ATTENTION_ATTENTION_PLANNER_H_

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/attention_cost.h"
#include "backends/registry.h"
#include "backends/selection_policy.h"
#include "runtime/attention/forward_context.h"
#include "runtime/attention/plan_cache.h"
#include "runtime/job.h"
#include "runtime/observer.h"

namespace denoised {

// What stays the same for all planners of a model.
struct PlannerSetting {
  const BackendRegistry* registry;
  const SelectionPolicy* policy;
  DeviceInfo device;
  std::optional<AttnBackend> model_default;
  std::string model_default_parameters_json;  // belongs to model_default
  // What builders made for any of them.
  std::shared_ptr<PlanCache> plans = std::make_shared<PlanCache>();
};

// What would serve a layer of this spec now: the one question behind a step, the check at Submit
// and Explain. Throws what Select throws, and InvalidField("attention.parameters") where parameters
// come without a backend.
Selection ChooseNow(const PlannerSetting& setting, const AttentionOptions& options,
                    const AttentionSpec& spec);

// One for each job or Denoise call; engine thread only.
class AttentionPlanner {
 public:
  AttentionPlanner(const PlannerSetting& setting, AttentionOptions options, Observer* observer);

  // The plan for the roles of `specs` at this step; roles without a spec keep an empty slot.
  // Selects anew only where the policy moved or the spec changed since the last call, and has the
  // builders make this step's metadata where no other planner of the model has it. The reference is
  // good until the next call. What layers tallied or was booked for a step that did not complete is
  // forgotten. Throws what ChooseNow and the builders throw.
  const AttentionPlan& Prepare(const std::vector<AttentionSpec>& specs, int64_t step,
                               int64_t num_steps);

  // Books what the layers tallied since the last call to the step that is under way, and reports it
  // to the observer. Called after each forward, so that it belongs to the plan that ran.
  void BookForward();

  // What was booked since the last call belongs to a step that is done: it enters the receipt. A
  // step that fails on the way never gets here, and is not on it.
  void Complete();

  // What ran in completed steps: a row for each role and range of steps with one kernel, one
  // granted wish and one set of refusals.
  std::vector<ReceiptEntry> Entries() const;

  // What calls take with the backends that would serve them now, or nothing where none would. Good
  // for as long as the planner.
  std::function<AttentionCost(const AttentionSpec&, int64_t rows)> CostNow() const;

  // Of a planner that has prepared nothing yet: what another one's Entries and Notes were, of steps
  // that need not run again.
  void Restore(std::vector<ReceiptEntry> entries, std::vector<std::string> notes);

  // For the receipt, each sentence once: what the backends that ran had to say, and what others
  // add.
  void AddNote(std::string note);
  const std::vector<std::string>& Notes() const { return notes_; }

  // What a role runs now; empty before the first Prepare of the role.
  std::optional<AttnBackend> Current(AttentionRole role) const;

 private:
  struct RoleState {
    std::optional<AttentionSpec> spec;
    Selection selection;
    std::shared_ptr<MetadataMaker> maker;
    AttentionTally fresh;  // filled by the layers
    int64_t step = 0;
    uint64_t version = 0;  // of the policy when this was selected
  };

  void Choose(RoleState& state, const AttentionSpec& spec);
  void Report(const RoleState& before, const AttentionSpec& spec, const Selection& now);
  void Book(const RoleState& state, AttnBackend ran, const AttentionCount& count);
  void TakeNote(const RoleState& state);

  const PlannerSetting setting_;
  const AttentionOptions options_;
  Observer* const observer_;
  std::array<RoleState, kNumAttentionRoles> roles_;
  AttentionPlan plan_;
  std::vector<ReceiptEntry> pending_;  // of the step that is under way
  std::vector<ReceiptEntry> done_;
  std::vector<std::string> notes_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_ATTENTION_PLANNER_H_
