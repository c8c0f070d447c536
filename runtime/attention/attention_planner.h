// Chooses the backend of each layer for each step of one piece of work, and keeps its receipt.
#ifndef DENOISED_RUNTIME_ATTENTION_ATTENTION_PLANNER_H_
#define DENOISED_RUNTIME_ATTENTION_ATTENTION_PLANNER_H_

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/attention_cost.h"
#include "runtime/attention/choices.h"
#include "runtime/attention/forward_context.h"
#include "runtime/attention/plan_cache.h"
#include "runtime/job.h"
#include "runtime/observer.h"

namespace denoised {

// One for each job, session or Denoise call; engine thread only. What automatic selection is told
// by measurements stays what it was when a kind of call was first planned (subject.order).
class AttentionPlanner {
 public:
  AttentionPlanner(const PlannerSetting& setting, PlannerSubject subject, Observer* observer);
  ~AttentionPlanner();
  AttentionPlanner(const AttentionPlanner&) = delete;
  AttentionPlanner& operator=(const AttentionPlanner&) = delete;

  // The plan for the roles of `specs` at this step; roles without a spec keep an empty one. Selects
  // anew only where the policy moved, the spec changed, or another rule holds since the last call,
  // and has the builders make this step's metadata where no other planner of the model has it. The
  // reference is good until the next call. What layers tallied or was booked for a step that did
  // not complete is forgotten. No sigma: outside of the denoising loop. Throws what Choose and
  // the builders throw.
  const AttentionPlan& Prepare(const std::vector<AttentionSpec>& specs, int64_t step,
                               int64_t num_steps, std::optional<double> sigma = std::nullopt);

  // Books what the layers tallied since the last call to the step that is under way. Called after
  // each forward, so that it belongs to the plan that ran.
  void BookForward();
  // Of a forward that need not run again, of the role's present plan: the same row on the receipt,
  // and nothing else is told of it.
  void BookKept(AttentionRole role, const AttentionTally& tally);

  // What was booked since the last call belongs to a step that is done: it enters the receipt, and
  // is reported to the observer with what changed since the step before. A step that fails on the
  // way never gets here, and is in neither.
  void Complete();

  // Of a unit that is done, or has failed and is prepared once more for other backends:

  // The leases that layers of the unit run under, each once, the narrowest first.
  std::vector<Wish> Leased() const;
  // Throws INTERNAL (reason BUDGET, field the lease's id) where one of them has broken its budget.
  void RequireBudgets() const;
  // What a layer of the role needs in this unit, where one runs `backend`; else null.
  const AttentionSpec* Runs(AttnBackend backend, AttentionRole role) const;
  // Until the next Complete: as if this lease were not, or none; as if the backend could not serve
  // the role.
  void Avoid(const std::string& lease_id);
  void AvoidOnly(const std::string& lease_id);  // of leases
  void AvoidLeases();
  void Avoid(AttnBackend backend, AttentionRole role, std::string why);
  // Likewise: what the unit gives is taken, where it can be.
  void TakeAsItIs() { takes_all_ = true; }
  // Whether what merely looks wrong in the unit's result is told of: it may be a lease's fault.
  bool suspects() const { return !takes_all_ && (avoided_.AnyLease() || !Leased().empty()); }
  // The unit did not come to its end: probes of circuit breakers are given back.
  void Undone() { setting_.guard->breakers().Leave(this); }
  // It is not done once more, or from the beginning.
  void AvoidNothing();

  // What ran in completed steps: a row for each role, range of layers and range of steps with one
  // kernel, one granted wish and one set of refusals.
  std::vector<ReceiptEntry> Entries() const;

  // CostNow for its subject; nothing where nothing would serve.
  std::function<AttentionCost(const AttentionSpec&, int64_t rows)> CostNow() const;

  // Of a planner that has prepared nothing yet: what another one's Entries and Notes were, of steps
  // that need not run again.
  void Restore(std::vector<ReceiptEntry> entries, std::vector<std::string> notes);

  // Other wishes, from the next Prepare on.
  void SetSubject(PlannerSubject subject);

  // Of a planner that has prepared nothing yet: the rows, notes and pinned leases of one whose work
  // was forked.
  void GoOnFrom(const AttentionPlanner& other);

  // What ran in the step that was completed last.
  const std::vector<ReceiptEntry>& Last() const { return last_; }

  // For the receipt, each sentence once: what the backends that ran completed steps had to say, and
  // what others add.
  void AddNote(std::string note);
  const std::vector<std::string>& Notes() const { return notes_; }

  // What most layers of a role run now; empty before the first Prepare of the role.
  std::optional<AttnBackend> Current(AttentionRole role) const;

  // The leases that a pinned subject is held to; null before its first Prepare, and where it is not
  // pinned. Given to another planner of the same work before its first, they hold there.
  const std::shared_ptr<const LeaseList>& pinned() const { return subject_.pinned; }
  void Pin(std::shared_ptr<const LeaseList> leases) { subject_.pinned = std::move(leases); }
  // One of them was ended for what it did.
  void Unpin(const std::string& lease_id);

 private:
  // Neighbouring layers of a role that one choice serves.
  struct Segment {
    LayerChoice choice;
    std::shared_ptr<MetadataMaker> maker;
    AttentionTally fresh;  // filled by the layers
  };
  static constexpr uint64_t kStale = UINT64_MAX;
  struct RoleState {
    std::optional<AttentionSpec> spec;
    RoleWishes wishes;
    std::deque<Segment> segments;  // slots of the plan point into them
    int64_t step = 0;
    // Version() when this was selected; kStale: the subject, or what to avoid, is another.
    uint64_t version = 0;
    bool in_unit = false;                                      // of the last Prepare
    bool untold = false;                                       // the observer has yet to hear of it
    bool budgeted = false;                                     // a lease with a budget was granted
    std::vector<LayerChoice> before;                           // of the last step that is done
    std::vector<std::shared_ptr<const WatchedCalls>> watched;  // with other backends

    bool Holds(uint64_t version, const AttentionSpec& spec, const StepPlace& place) const;
  };
  // What the unit under way does without.
  struct Avoided {
    std::vector<std::string> leases;
    bool all_leases = false;
    std::vector<std::tuple<AttnBackend, AttentionRole, std::string>> backends;  // and why

    bool AnyLease() const { return all_leases || !leases.empty(); }
    bool operator==(const Avoided&) const = default;
  };

  uint64_t Version() const;
  std::shared_ptr<const LeaseList> Leases();
  std::optional<std::string> WhyNot(AttnBackend backend, const AttentionSpec& spec) const;
  void ChooseAnew(RoleState& state, const AttentionSpec& spec, const StepPlace& place);
  void SetAvoided(Avoided avoided);
  void Watch(RoleState* state, int64_t num_steps, std::optional<double> sigma);
  void Report(RoleState* state);
  ReceiptEntry EntryOf(const RoleState& state, const Segment& segment, AttnBackend ran,
                       const AttentionCount& count) const;
  void Book(const RoleState& state, const Segment& segment, const AttentionTally& tally,
            std::vector<ReceiptEntry>* to);
  void TakeNote(const RoleState& state, const Segment& segment);
  RolePlan& PlanOf(AttentionRole role) { return plan_[static_cast<size_t>(role)]; }

  const PlannerSetting setting_;
  PlannerSubject subject_;
  Observer* const observer_;
  std::array<RoleState, kNumAttentionRoles> roles_;
  AttentionPlan plan_;
  Avoided avoided_;
  bool takes_all_ = false;
  std::vector<ReceiptEntry> pending_;  // of the step that is under way
  std::vector<ReceiptEntry> kept_;     // likewise, of forwards that did not run
  std::vector<ReceiptEntry> last_, done_;
  std::vector<std::string> fresh_notes_, notes_;  // of the step that is under way; of those done
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_ATTENTION_PLANNER_H_
