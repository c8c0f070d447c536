#include "runtime/attention/attention_planner.h"

#include <algorithm>
#include <utility>

#include "runtime/caught.h"

namespace denoised {
namespace {

bool Continues(const ReceiptEntry& row, const ReceiptEntry& next) {
  return row.role == next.role && row.layers == next.layers &&
         next.first_step <= row.last_step + 1 && next.first_step >= row.first_step &&
         row.ran == next.ran && row.parameters == next.parameters && row.asked == next.asked &&
         row.selection == next.selection;
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

// Held to what measurements say from now on.
PlannerSubject Begun(PlannerSubject subject) {
  if (!subject.order) subject.order = std::make_shared<AutomaticOrder>();
  return subject;
}

// What the request asked for at a place where these hold.
std::optional<AttnBackend> AskedAmong(const std::vector<Wish>& wishes) {
  const auto found = std::ranges::find(wishes, SelectionSource::kRequest, &Wish::source);
  return found == wishes.end() ? std::nullopt : std::optional(found->backend);
}

// Neighbours that differ only in what was not granted and not refused are one.
std::vector<LayerChoice> Joined(std::vector<LayerChoice> choices) {
  std::vector<LayerChoice> joined;
  for (LayerChoice& choice : choices) {
    const bool same = !joined.empty() && joined.back().selection == choice.selection &&
                      AskedAmong(joined.back().wishes) == AskedAmong(choice.wishes);
    if (same) {
      joined.back().layers.last = choice.layers.last;
    } else {
      joined.push_back(std::move(choice));
    }
  }
  return joined;
}

}  // namespace

AttentionPlanner::AttentionPlanner(const PlannerSetting& setting, PlannerSubject subject,
                                   Observer* observer)
    : setting_(setting), subject_(Begun(std::move(subject))), observer_(observer) {}

bool AttentionPlanner::RoleState::Holds(uint64_t version, const AttentionSpec& spec,
                                        const StepPlace& place) const {
  return this->version == version && this->spec == spec && wishes.HoldsAt(place);
}

const Selection& AttentionPlanner::RoleState::SelectionAt(int64_t layer) const {
  const auto segment = std::ranges::find_if(
      segments, [&](const Segment& segment) { return segment.choice.layers.Has(layer); });
  return segment->choice.selection;
}

const AttentionPlan& AttentionPlanner::Prepare(const std::vector<AttentionSpec>& specs,
                                               int64_t step, int64_t num_steps,
                                               std::optional<double> sigma) {
  const uint64_t version = setting_.policy->version();
  pending_.clear();
  kept_.clear();
  for (const AttentionSpec& spec : specs) {
    RoleState& state = roles_[static_cast<size_t>(spec.role)];
    const StepPlace place = InLoop(spec.role) ? StepPlace{step, sigma} : StepPlace();
    if (!state.Holds(version, spec, place)) ChooseAnew(state, spec, place);
    state.version = version;
    state.step = step;
    RolePlan& plan = PlanOf(spec.role);
    for (size_t i = 0; i < state.segments.size(); ++i) {
      state.segments[i].fresh = {};
      plan.slots[i].metadata = state.segments[i].maker->Make(step, num_steps);
    }
  }
  return plan_;
}

std::shared_ptr<const LeaseList> AttentionPlanner::Leases() {
  std::shared_ptr<const LeaseList> leases = LeasesOf(setting_, subject_);
  if (subject_.pin) subject_.pinned = leases;
  return leases;
}

void AttentionPlanner::ChooseAnew(RoleState& state, const AttentionSpec& spec,
                                  const StepPlace& place) {
  RoleWishes wishes = WishesAt(WishesOf(setting_, subject_, *Leases()), spec.role,
                               setting_.LayersOf(spec.role), place);
  std::vector<LayerChoice> choices = Joined(Choose(setting_, subject_, spec, wishes));
  Report(state, spec, choices);
  std::deque<Segment> segments;
  std::vector<AttentionSlot> slots;
  for (LayerChoice& choice : choices) {
    const Wish& granted = choice.selection.granted;
    const AttentionBackend* backend = setting_.registry->Find(granted.backend)->backend;
    auto maker = setting_.plans->Find(*backend, spec, granted.parameters);
    Segment& segment = segments.emplace_back(std::move(choice), std::move(maker));
    slots.push_back({backend, segment.choice.selection.granted.backend, nullptr, &segment.fresh,
                     segment.choice.layers.last});
  }
  state.segments = std::move(segments);
  state.wishes = std::move(wishes);
  state.spec = spec;
  PlanOf(spec.role).slots = std::move(slots);
}

void AttentionPlanner::Report(const RoleState& before, const AttentionSpec& spec,
                              const std::vector<LayerChoice>& now) {
  bool switched = false;
  for (const LayerChoice& choice : now) {
    const Selection& selection = choice.selection;
    const Selection* was = before.spec ? &before.SelectionAt(choice.layers.first) : nullptr;
    const bool differs = was != nullptr && was->granted.backend != selection.granted.backend;
    if (differs && !std::exchange(switched, true) && spec.role == AttentionRole::kSelf) {
      observer_->OnBackendSwitch(selection.granted.source);
    }
    if (was != nullptr && was->refusals == selection.refusals) continue;
    for (const Refusal& refusal : selection.refusals) {
      if (refusal.source == SelectionSource::kAutomatic) continue;
      if (!IsActionable(refusal.backend, spec)) continue;
      observer_->OnFallback(refusal.backend, selection.granted.backend, refusal.source);
    }
  }
}

void AttentionPlanner::BookForward() {
  for (RoleState& state : roles_) {
    for (Segment& segment : state.segments) {
      const AttentionTally tally = std::exchange(segment.fresh, {});
      Book(state, segment, tally, &pending_);
    }
  }
}

void AttentionPlanner::BookKept(AttentionRole role, const AttentionTally& tally) {
  const RoleState& state = roles_[static_cast<size_t>(role)];
  Book(state, state.segments.front(), tally, &kept_);
}

void AttentionPlanner::Book(const RoleState& state, const Segment& segment,
                            const AttentionTally& tally, std::vector<ReceiptEntry>* to) {
  for (size_t i = 0; i < tally.counts.size(); ++i) {
    if (tally.counts[i].calls == 0) continue;
    ReceiptEntry entry = EntryOf(state, segment, static_cast<AttnBackend>(i), tally.counts[i]);
    const bool own = entry.ran == segment.choice.selection.granted.backend;
    Append(std::move(entry), to);
    if (own) TakeNote(state, segment);
  }
}

ReceiptEntry AttentionPlanner::EntryOf(const RoleState& state, const Segment& segment,
                                       AttnBackend ran, const AttentionCount& count) const {
  const Selection& selection = segment.choice.selection;
  const bool own = ran == selection.granted.backend;
  ReceiptEntry entry;
  entry.role = state.spec->role;
  entry.first_step = entry.last_step = state.step;
  if (state.segments.size() > 1) entry.layers = segment.choice.layers;
  entry.asked = AskedAmong(segment.choice.wishes);
  entry.ran = ran;
  if (own) entry.parameters = selection.granted.parameters;  // a call is handed over without
  entry.selection = selection;
  entry.calls = count.calls;
  if (setting_.device.type == DeviceInfo::Type::kCpu) entry.seconds = count.seconds;
  return entry;
}

void AttentionPlanner::Complete() {
  last_ = std::exchange(pending_, {});
  for (const ReceiptEntry& entry : last_) {
    observer_->OnAttention(entry.ran, entry.role, entry.calls, entry.seconds);
    Append(entry, &done_);
  }
  for (ReceiptEntry& entry : kept_) Append(std::move(entry), &done_);
  kept_.clear();
}

void AttentionPlanner::SetSubject(PlannerSubject subject) {
  subject_ = std::move(subject);
  for (RoleState& state : roles_) state.version = kStale;
}

void AttentionPlanner::GoOnFrom(const AttentionPlanner& other) {
  done_ = other.done_;
  notes_ = other.notes_;
  subject_.pinned = other.subject_.pinned;
}

std::function<AttentionCost(const AttentionSpec&, int64_t)> AttentionPlanner::CostNow() const {
  return [cost = denoised::CostNow(setting_, subject_)](const AttentionSpec& spec, int64_t rows) {
    AttentionCost known;
    Caught([&] { known = cost(spec, rows); });
    return known;
  };
}

void AttentionPlanner::TakeNote(const RoleState& state, const Segment& segment) {
  const AttentionSlot& slot = *PlanOf(state.spec->role).Of(segment.choice.layers.first);
  AddNote(slot.backend->Note(*state.spec, slot.metadata.get()));
}

void AttentionPlanner::AddNote(std::string note) {
  if (note.empty() || std::find(notes_.begin(), notes_.end(), note) != notes_.end()) return;
  notes_.push_back(std::move(note));
}

std::vector<ReceiptEntry> AttentionPlanner::Entries() const {
  std::vector<ReceiptEntry> entries = done_;
  const auto place = [](const ReceiptEntry& row) {
    return std::tuple(row.role, row.first_step, row.layers ? row.layers->first : 0);
  };
  std::ranges::stable_sort(entries, {}, place);
  return entries;
}

// What is done again where a run goes on comes onto the receipt again.
void AttentionPlanner::Restore(std::vector<ReceiptEntry> entries, std::vector<std::string> notes) {
  done_ = std::move(entries);
  std::erase_if(done_, [](const ReceiptEntry& row) { return !InLoop(row.role); });
  notes_ = std::move(notes);
}

std::optional<AttnBackend> AttentionPlanner::Current(AttentionRole role) const {
  const RoleState& state = roles_[static_cast<size_t>(role)];
  if (!state.spec) return std::nullopt;
  const auto most = std::ranges::max_element(
      state.segments, {}, [](const Segment& segment) { return segment.choice.layers.size(); });
  return most->choice.selection.granted.backend;
}

}  // namespace denoised
