// Chooses the backend of each role for each step of one piece of work, and keeps its receipt.
#ifndef DENOISED_RUNTIME_ATTENTION_PLANNER_H_
#define DENOISED_RUNTIME_ATTENTION_PLANNER_H_

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/registry.h"
#include "backends/selector.h"
#include "runtime/forward_context.h"
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
};

// One for each job or Denoise call; engine thread only.
class AttentionPlanner {
 public:
  // Throws InvalidField("attention.parameters") where parameters come without a backend.
  AttentionPlanner(const PlannerSetting& setting, AttentionOptions options, Observer* observer);

  // The plan for the roles of `specs` at this step; roles without a spec keep an empty slot.
  // Selects anew only where the policy moved or the spec changed since the last call, and has the
  // builders make this step's metadata. The reference is good until the next call. Throws what
  // Select and the builders throw; the step is not in the receipt then.
  const AttentionPlan& Prepare(const std::vector<AttentionSpec>& specs, int64_t step,
                               int64_t num_steps);

  // What ran so far, a row for each role and range of steps with one backend.
  std::vector<ReceiptEntry> Entries() const;

  // What the backends that ran had to say for the receipt, each sentence once.
  const std::vector<std::string>& Notes() const { return notes_; }

  // What a role runs now; empty before the first Prepare of the role.
  std::optional<AttnBackend> Current(AttentionRole role) const;

  // Books what the layers tallied since the last call to the receipt, and returns it for metrics.
  // Called after each forward, so that it belongs to the backends of the plan that ran.
  std::array<AttentionTally, kNumAttentionRoles> TakeTallies();

 private:
  struct RoleState {
    std::optional<AttentionSpec> spec;
    Selection selection;
    std::unique_ptr<AttentionMetadataBuilder> builder;
    AttentionTally fresh;                    // filled by the layers
    AttentionTally booked;                   // of the current range of steps
    int64_t first_step = 0, last_step = -1;  // inclusive: nothing has run while last < first
    uint64_t version = 0;                    // of the policy when this was selected
  };

  SelectionWishes Wishes() const;
  void Choose(RoleState& state, const AttentionSpec& spec, int64_t step);
  void Report(const RoleState& before, const Selection& now, bool switched);
  std::string ParametersFor(const Selection& selection) const;
  void TakeNote(const AttentionSlot& slot, const AttentionSpec& spec);
  void Close(RoleState& state);
  ReceiptEntry EntryOf(const RoleState& state) const;

  const PlannerSetting setting_;
  const AttentionOptions options_;
  Observer* const observer_;
  std::array<RoleState, kNumAttentionRoles> roles_;
  AttentionPlan plan_;
  std::vector<ReceiptEntry> closed_;
  std::vector<std::string> notes_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_PLANNER_H_
