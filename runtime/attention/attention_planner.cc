#include "runtime/attention/attention_planner.h"

#include <algorithm>
#include <utility>

#include "runtime/caught.h"

namespace denoised {
namespace {

SelectionSubject SubjectOf(const PlannerSetting& setting, const AttentionOptions& options) {
  const bool given = !options.parameters_json.empty() && options.parameters_json != "{}";
  if (given && !options.backend) {
    throw InvalidField("attention.parameters", "parameters need attention.backend to be named");
  }
  SelectionSubject subject;
  if (options.backend) {
    subject.request =
        Wish{SelectionSource::kRequest, *options.backend, options.parameters_json, ""};
  }
  if (setting.model_default) {
    subject.model_default = Wish{SelectionSource::kModelDefault, *setting.model_default,
                                 setting.model_default_parameters_json, ""};
  }
  return subject;
}

bool Continues(const ReceiptEntry& row, const ReceiptEntry& next) {
  return row.role == next.role && next.first_step <= row.last_step + 1 &&
         next.first_step >= row.first_step && row.ran == next.ran &&
         row.parameters == next.parameters && row.selection == next.selection;
}

// Adds `entry` to the row that it continues, or as a row of its own.
void Append(ReceiptEntry entry, std::vector<ReceiptEntry>* rows) {
  const auto row = std::find_if(rows->rbegin(), rows->rend(),
                                [&](const ReceiptEntry& row) { return Continues(row, entry); });
  if (row == rows->rend()) return rows->push_back(std::move(entry));
  row->last_step = std::max(row->last_step, entry.last_step);
  row->calls += entry.calls;
  if (row->seconds) *row->seconds += entry.seconds.value_or(0);
}

}  // namespace

Selection ChooseNow(const PlannerSetting& setting, const AttentionOptions& options,
                    const AttentionSpec& spec) {
  return Select(spec, setting.policy->WishesFor(SubjectOf(setting, options)), *setting.registry,
                setting.device, options.mode);
}

AttentionPlanner::AttentionPlanner(const PlannerSetting& setting, AttentionOptions options,
                                   Observer* observer)
    : setting_(setting), options_(std::move(options)), observer_(observer) {}

const AttentionPlan& AttentionPlanner::Prepare(const std::vector<AttentionSpec>& specs,
                                               int64_t step, int64_t num_steps) {
  const uint64_t version = setting_.policy->version();
  pending_.clear();
  for (const AttentionSpec& spec : specs) {
    RoleState& state = roles_[static_cast<size_t>(spec.role)];
    if (state.version != version || state.spec != spec) Choose(state, spec);
    state.version = version;
    state.step = step;
    state.fresh = {};
    plan_[static_cast<size_t>(spec.role)].metadata = state.maker->Make(step, num_steps);
  }
  return plan_;
}

void AttentionPlanner::Choose(RoleState& state, const AttentionSpec& spec) {
  Selection selection = ChooseNow(setting_, options_, spec);
  Report(state, spec, selection);
  const AttnBackend chosen = selection.granted.backend;
  const AttentionBackend* backend = setting_.registry->Find(chosen)->backend;
  state.maker = setting_.plans->Find(*backend, spec, selection.granted.parameters);
  plan_[static_cast<size_t>(spec.role)] = {backend, chosen, nullptr, &state.fresh};
  state.spec = spec;
  state.selection = std::move(selection);
}

void AttentionPlanner::Report(const RoleState& before, const AttentionSpec& spec,
                              const Selection& now) {
  const bool switched = before.spec && before.selection.granted.backend != now.granted.backend;
  if (switched && spec.role == AttentionRole::kSelf) observer_->OnBackendSwitch(now.granted.source);
  if (before.spec && before.selection.refusals == now.refusals) return;
  for (const Refusal& refusal : now.refusals) {
    if (refusal.source == SelectionSource::kAutomatic) continue;
    if (!IsActionable(refusal.backend, spec)) continue;
    observer_->OnFallback(refusal.backend, now.granted.backend, refusal.source);
  }
}

void AttentionPlanner::BookForward() {
  for (RoleState& state : roles_) {
    if (!state.spec) continue;
    const AttentionTally tally = std::exchange(state.fresh, {});
    for (size_t i = 0; i < tally.counts.size(); ++i) {
      if (tally.counts[i].calls > 0) Book(state, static_cast<AttnBackend>(i), tally.counts[i]);
    }
  }
}

void AttentionPlanner::Book(const RoleState& state, AttnBackend ran, const AttentionCount& count) {
  const bool own = ran == state.selection.granted.backend;
  ReceiptEntry entry;
  entry.role = state.spec->role;
  entry.first_step = entry.last_step = state.step;
  entry.asked = options_.backend;
  entry.ran = ran;
  if (own) entry.parameters = state.selection.granted.parameters;  // a call is handed over without
  entry.selection = state.selection;
  entry.calls = count.calls;
  if (setting_.device.type == DeviceInfo::Type::kCpu) entry.seconds = count.seconds;
  observer_->OnAttention(ran, entry.role, entry.calls, entry.seconds);
  Append(std::move(entry), &pending_);
  if (own) TakeNote(state);
}

void AttentionPlanner::Complete() {
  for (ReceiptEntry& entry : pending_) Append(std::move(entry), &done_);
  pending_.clear();
}

std::function<AttentionCost(const AttentionSpec&, int64_t)> AttentionPlanner::CostNow() const {
  return [this](const AttentionSpec& spec, int64_t rows) {
    AttentionCost cost;
    Caught([&] {
      const Wish granted = ChooseNow(setting_, options_, spec).granted;
      const AttentionBackend* backend = setting_.registry->Find(granted.backend)->backend;
      cost = backend->Estimate(spec, granted.parameters, rows);
    });
    return cost;
  };
}

void AttentionPlanner::TakeNote(const RoleState& state) {
  const AttentionSlot& slot = plan_[static_cast<size_t>(state.spec->role)];
  AddNote(slot.backend->Note(*state.spec, slot.metadata.get()));
}

void AttentionPlanner::AddNote(std::string note) {
  if (note.empty() || std::find(notes_.begin(), notes_.end(), note) != notes_.end()) return;
  notes_.push_back(std::move(note));
}

std::vector<ReceiptEntry> AttentionPlanner::Entries() const {
  std::vector<ReceiptEntry> entries = done_;
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.role, a.first_step) < std::pair(b.role, b.first_step);
  });
  return entries;
}

// What is done again where a run goes on comes onto the receipt again.
void AttentionPlanner::Restore(std::vector<ReceiptEntry> entries, std::vector<std::string> notes) {
  done_ = std::move(entries);
  std::erase_if(done_, [](const ReceiptEntry& row) {
    return row.role == AttentionRole::kTextEncoder || row.role == AttentionRole::kVae;
  });
  notes_ = std::move(notes);
}

std::optional<AttnBackend> AttentionPlanner::Current(AttentionRole role) const {
  const RoleState& state = roles_[static_cast<size_t>(role)];
  return state.spec ? std::optional(state.selection.granted.backend) : std::nullopt;
}

}  // namespace denoised
