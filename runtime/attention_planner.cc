#include "runtime/attention_planner.h"

#include <algorithm>
#include <utility>

namespace denoised {
AttentionPlanner::AttentionPlanner(const PlannerSetting& setting, AttentionOptions options,
                                   Observer* observer)
    : setting_(setting), options_(std::move(options)), observer_(observer) {
  if (!options_.parameters_json.empty() && !options_.backend) {
    throw InvalidField("attention.parameters", "parameters need attention.backend to be named");
  }
}

SelectionWishes AttentionPlanner::Wishes() const {
  SelectionWishes wishes;
  wishes.request = options_.backend;
  wishes.mode = options_.mode;
  wishes.model_default = setting_.model_default;
  setting_.policy->Apply(&wishes);
  return wishes;
}

const AttentionPlan& AttentionPlanner::Prepare(const std::vector<AttentionSpec>& specs,
                                               int64_t step, int64_t num_steps) {
  const uint64_t version = setting_.policy->version();
  for (const AttentionSpec& spec : specs) {
    RoleState& state = roles_[static_cast<size_t>(spec.role)];
    if (state.version != version || state.spec != spec) Choose(state, spec, step);
    state.version = version;
    if (!state.builder) continue;
    plan_[static_cast<size_t>(spec.role)].metadata =
        state.builder->Build({step, num_steps, spec, ParametersFor(state.selection)});
  }
  // Only now is it sure that the step runs.
  for (const AttentionSpec& spec : specs) {
    RoleState& state = roles_[static_cast<size_t>(spec.role)];
    if (state.last_step < state.first_step) TakeNote(plan_[static_cast<size_t>(spec.role)], spec);
    state.last_step = step;
  }
  return plan_;
}

void AttentionPlanner::Choose(RoleState& state, const AttentionSpec& spec, int64_t step) {
  Selection selection = Select(spec, Wishes(), *setting_.registry, setting_.device);
  const bool first = !state.spec.has_value();
  const bool switched = !first && selection.backend != state.selection.backend;
  const bool new_row = first || switched || selection.source != state.selection.source ||
                       selection.force_id != state.selection.force_id;
  Report(state, selection, switched);
  if (!first && new_row) Close(state);
  if (new_row) {
    state.first_step = step;
    state.last_step = step - 1;
  }
  if (first || switched) {
    const AttentionBackend* backend = setting_.registry->Find(selection.backend)->backend;
    state.builder = backend->MakeBuilder();
    if (!state.builder && !ParametersFor(selection).empty()) {
      throw InvalidField("attention.parameters", std::string(AttnBackendName(selection.backend)) +
                                                     " takes none, got " +
                                                     ParametersFor(selection));
    }
    plan_[static_cast<size_t>(spec.role)] = {backend, selection.backend, nullptr, &state.fresh};
  }
  state.spec = spec;
  state.selection = std::move(selection);
}

void AttentionPlanner::TakeNote(const AttentionSlot& slot, const AttentionSpec& spec) {
  std::string note = slot.backend->Note(spec, slot.metadata.get());
  if (note.empty() || std::find(notes_.begin(), notes_.end(), note) != notes_.end()) return;
  notes_.push_back(std::move(note));
}

void AttentionPlanner::Report(const RoleState& before, const Selection& now, bool switched) {
  const bool self = before.spec && before.spec->role == AttentionRole::kSelf;
  if (switched && self) observer_->OnBackendSwitch(now.source);
  if (before.spec && before.selection.refusals == now.refusals) return;
  for (const Refusal& refusal : now.refusals) {
    if (refusal.source == SelectionSource::kAutomatic) continue;
    observer_->OnFallback(refusal.backend, now.backend, refusal.source);
  }
}

std::string AttentionPlanner::ParametersFor(const Selection& selection) const {
  if (options_.backend == selection.backend) return options_.parameters_json;
  if (setting_.model_default == selection.backend) return setting_.model_default_parameters_json;
  return "";
}

void AttentionPlanner::Close(RoleState& state) {
  if (state.last_step >= state.first_step) closed_.push_back(EntryOf(state));
  state.booked = {};
}

ReceiptEntry AttentionPlanner::EntryOf(const RoleState& state) const {
  ReceiptEntry entry;
  entry.role = state.spec->role;
  entry.first_step = state.first_step;
  entry.last_step = state.last_step;
  entry.asked = options_.backend;
  entry.selection = state.selection;
  entry.calls = state.booked.calls;
  entry.seconds = state.booked.seconds;
  return entry;
}

std::vector<ReceiptEntry> AttentionPlanner::Entries() const {
  std::vector<ReceiptEntry> entries = closed_;
  for (const RoleState& state : roles_) {
    if (state.spec && state.last_step >= state.first_step) entries.push_back(EntryOf(state));
  }
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.role, a.first_step) < std::pair(b.role, b.first_step);
  });
  return entries;
}

std::optional<AttnBackend> AttentionPlanner::Current(AttentionRole role) const {
  const RoleState& state = roles_[static_cast<size_t>(role)];
  return state.spec ? std::optional(state.selection.backend) : std::nullopt;
}

std::array<AttentionTally, kNumAttentionRoles> AttentionPlanner::TakeTallies() {
  std::array<AttentionTally, kNumAttentionRoles> tallies;
  for (size_t i = 0; i < roles_.size(); ++i) {
    RoleState& state = roles_[i];
    tallies[i] = std::exchange(state.fresh, {});
    state.booked.calls += tallies[i].calls;
    state.booked.seconds += tallies[i].seconds;
  }
  return tallies;
}

}  // namespace denoised
