#include "runtime/attention/attention_planner.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/attention/shadows.h"
#include "runtime/attention/watching.h"
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

AttentionPlanner::~AttentionPlanner() { setting_.guard->breakers().Leave(this); }

bool AttentionPlanner::RoleState::Holds(uint64_t version, const AttentionSpec& spec,
                                        const StepPlace& place) const {
  return this->version == version && this->spec == spec && wishes.HoldsAt(place);
}

// Both grow, so that it moves where either does.
uint64_t AttentionPlanner::Version() const {
  return setting_.policy->version() + setting_.guard->breakers().version();
}

const AttentionPlan& AttentionPlanner::Prepare(const std::vector<AttentionSpec>& specs,
                                               int64_t step, int64_t num_steps,
                                               std::optional<double> sigma) {
  const uint64_t version = Version();
  pending_.clear();
  kept_.clear();
  fresh_notes_.clear();
  for (RoleState& state : roles_) state.in_unit = false;
  for (const AttentionSpec& spec : specs) {
    RoleState& state = roles_[static_cast<size_t>(spec.role)];
    const StepPlace place = InLoop(spec.role) ? StepPlace{step, sigma} : StepPlace();
    if (!state.Holds(version, spec, place)) ChooseAnew(state, spec, place);
    state.version = version;
    state.in_unit = true;
    state.step = step;
    RolePlan& plan = PlanOf(spec.role);
    for (size_t i = 0; i < state.segments.size(); ++i) {
      state.segments[i].fresh = {};
      plan.slots[i].metadata = state.segments[i].maker->Make(step, num_steps);
    }
    Watch(&state, num_steps, sigma);
  }
  return plan_;
}

std::shared_ptr<const LeaseList> AttentionPlanner::Leases() {
  std::shared_ptr<const LeaseList> leases = LeasesOf(setting_, subject_);
  if (subject_.pin) subject_.pinned = leases;
  if (!avoided_.AnyLease()) return leases;
  auto others = std::make_shared<LeaseList>(*leases);
  std::erase_if(*others, [&](const Lease& lease) {
    return avoided_.all_leases || std::ranges::count(avoided_.leases, lease.id) > 0;
  });
  return others;
}

std::optional<std::string> AttentionPlanner::WhyNot(AttnBackend backend,
                                                    const AttentionSpec& spec) const {
  for (const auto& [avoided, role, why] : avoided_.backends) {
    if (avoided == backend && role == spec.role) return why;
  }
  return setting_.guard->breakers().WhyNot(backend, spec, this);
}

void AttentionPlanner::ChooseAnew(RoleState& state, const AttentionSpec& spec,
                                  const StepPlace& place) {
  if (state.spec) setting_.guard->breakers().Leave(this, *state.spec);
  RoleWishes wishes = WishesAt(WishesOf(setting_, subject_, *Leases()), spec.role,
                               setting_.LayersOf(spec.role), place);
  std::vector<LayerChoice> choices =
      Joined(Choose(setting_, subject_, spec, wishes,
                    [&](AttnBackend backend) { return WhyNot(backend, spec); }));
  state.budgeted = AnyBudget(choices, *Leases());
  std::deque<Segment> segments;
  std::vector<AttentionSlot> slots;
  for (LayerChoice& choice : choices) {
    const Wish& granted = choice.selection.granted;
    const AttentionBackend* backend = setting_.registry->Find(granted.backend)->backend;
    setting_.guard->breakers().Claim(granted.backend, spec, this);
    auto maker = setting_.plans->Find(*backend, spec, granted.parameters);
    Segment& segment = segments.emplace_back(std::move(choice), std::move(maker));
    slots.push_back({backend, segment.choice.selection.granted.backend, nullptr, &segment.fresh,
                     segment.choice.layers.last, setting_.guard.get()});
  }
  state.segments = std::move(segments);
  state.wishes = std::move(wishes);
  state.spec = spec;
  state.untold = true;
  PlanOf(spec.role).slots = std::move(slots);
}

void AttentionPlanner::Report(RoleState* state) {
  const auto before = std::exchange(state->before, {});
  state->untold = false;
  bool switched = false;
  for (const Segment& segment : state->segments) {
    const LayerChoice& choice = state->before.emplace_back(segment.choice);
    const auto was = std::ranges::find_if(
        before, [&](const LayerChoice& other) { return other.layers.Has(choice.layers.first); });
    const Selection& selection = choice.selection;
    const Selection* old = was != before.end() ? &was->selection : nullptr;
    const bool differs = old != nullptr && old->granted.backend != selection.granted.backend;
    if (differs && !std::exchange(switched, true) && state->spec->role == AttentionRole::kSelf) {
      observer_->OnBackendSwitch(selection.granted.source);
    }
    if (old != nullptr && old->refusals == selection.refusals) continue;
    for (const Refusal& refusal : selection.refusals) {
      if (refusal.source == SelectionSource::kAutomatic) continue;
      if (!IsActionable(refusal.backend, *state->spec)) continue;
      observer_->OnFallback(refusal.backend, selection.granted.backend, refusal.source);
    }
  }
}

// ---- what is compared with other backends ------------------------------------------------------

// A cheap question at most steps: neither is a shadow live nor a lease with a budget granted. What
// was watched last is held until then, so that what builders made for it need not be made again.
void AttentionPlanner::Watch(RoleState* state, int64_t num_steps, std::optional<double> sigma) {
  Shadows* shadows = setting_.guard->shadows();
  const bool wanted = shadows != nullptr && (state->budgeted || shadows->any());
  if (!wanted && state->watched.empty()) return;
  std::vector<AttentionSlot>& slots = PlanOf(state->spec->role).slots;
  for (AttentionSlot& slot : slots) slot.watched.clear();
  if (!wanted) return state->watched.clear();
  if (state->budgeted) shadows->LeaveTime();
  if (!shadows->Affords()) return;
  const auto start = std::chrono::steady_clock::now();
  const std::shared_ptr<const LeaseList> leases = Leases();
  const Watching watching{setting_,  subject_, *state->spec, {state->step, sigma},
                          num_steps, *leases};
  std::vector<std::shared_ptr<const WatchedCalls>> watched;
  for (size_t i = 0; i < slots.size(); ++i) {
    const auto calls = WatchedBy(watching, state->segments[i].choice);
    if (calls == nullptr) continue;
    slots[i].watched.push_back({calls});
    watched.push_back(calls);
  }
  state->watched = std::move(watched);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  shadows->HeldUp(took.count(), /*inside_unit=*/true);
}

void AttentionPlanner::RequireBudgets() const {
  const Shadows* shadows = setting_.guard->shadows();
  if (shadows == nullptr) return;
  for (const Wish& lease : Leased()) {
    if (const auto why = shadows->WhyBroken(lease.lease_id)) {
      throw Error(StatusCode::kInternal, *why, lease.lease_id, "BUDGET");
    }
  }
}

// ---- a unit that failed ------------------------------------------------------------------------

std::vector<Wish> AttentionPlanner::Leased() const {
  std::vector<Wish> leased;
  for (const RoleState& state : roles_) {
    if (!state.in_unit) continue;
    for (const Segment& segment : state.segments) {
      const Wish& granted = segment.choice.selection.granted;
      const bool known = std::ranges::count(leased, granted.lease_id, &Wish::lease_id) > 0;
      if (!granted.lease_id.empty() && !known) leased.push_back(granted);
    }
  }
  const std::shared_ptr<const LeaseList> order = LeasesOf(setting_, subject_);
  std::ranges::stable_sort(leased, {}, [&](const Wish& wish) {
    return std::ranges::find(*order, wish.lease_id, &Lease::id) - order->begin();
  });
  return leased;
}

const AttentionSpec* AttentionPlanner::Runs(AttnBackend backend, AttentionRole role) const {
  const RoleState& state = roles_[static_cast<size_t>(role)];
  const bool runs = std::ranges::any_of(state.segments, [&](const Segment& segment) {
    return segment.choice.selection.granted.backend == backend;
  });
  return state.in_unit && runs ? &*state.spec : nullptr;
}

void AttentionPlanner::SetAvoided(Avoided avoided) {
  avoided_ = std::move(avoided);
  for (RoleState& state : roles_) state.version = kStale;
}

void AttentionPlanner::Avoid(const std::string& lease_id) {
  Avoided avoided = std::move(avoided_);
  avoided.leases.push_back(lease_id);
  SetAvoided(std::move(avoided));
}

void AttentionPlanner::Avoid(AttnBackend backend, AttentionRole role, std::string why) {
  Avoided avoided = std::move(avoided_);
  avoided.backends.emplace_back(backend, role, std::move(why));
  SetAvoided(std::move(avoided));
}

void AttentionPlanner::AvoidOnly(const std::string& lease_id) {
  SetAvoided({{lease_id}, false, std::move(avoided_.backends)});
}

void AttentionPlanner::AvoidLeases() {
  Avoided avoided = std::move(avoided_);
  avoided.all_leases = true;
  SetAvoided(std::move(avoided));
}

void AttentionPlanner::AvoidNothing() {
  takes_all_ = false;
  if (avoided_ != Avoided()) SetAvoided({});
}

void AttentionPlanner::Unpin(const std::string& lease_id) {
  if (!subject_.pinned) return;
  auto others = std::make_shared<LeaseList>(*subject_.pinned);
  std::erase_if(*others, [&](const Lease& lease) { return lease.id == lease_id; });
  subject_.pinned = std::move(others);
  for (RoleState& state : roles_) state.version = kStale;
}

// ---- the receipt -------------------------------------------------------------------------------

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
  for (RoleState& state : roles_) {
    if (state.in_unit && state.untold) Report(&state);
  }
  last_ = std::exchange(pending_, {});
  for (const ReceiptEntry& entry : last_) {
    const AttentionSpec& spec = *roles_[static_cast<size_t>(entry.role)].spec;
    setting_.guard->breakers().Succeeded(entry.selection.granted.backend, spec, this);
    observer_->OnAttention(entry.ran, entry.role, entry.calls, entry.seconds);
    Append(entry, &done_);
  }
  for (ReceiptEntry& entry : kept_) Append(std::move(entry), &done_);
  kept_.clear();
  for (std::string& note : std::exchange(fresh_notes_, {})) AddNote(std::move(note));
  setting_.guard->breakers().Leave(this);  // what it was granted and did not call
  AvoidNothing();
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
  fresh_notes_.push_back(slot.backend->Note(*state.spec, slot.metadata.get()));
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
