// Units that failed and may go well with another choice of backends: a step whose latents are no
// longer finite, or all equal, where layers of it ran under leases; and calls in which a backend
// threw. A unit that fails leaves its run as it was, so that it can be done once more from what it
// began with; whoever shared its forward is not concerned.
#include <algorithm>
#include <utility>

#include "runtime/cut_text.h"
#include "runtime/engine/engine_impl.h"

namespace denoised {
namespace {

// Of what a backend said, in refusals, notes and the audit.
constexpr size_t kMaxSaid = 300;

std::string NameOf(AttnBackend backend) { return std::string(AttnBackendName(backend)); }

// What a result was refused for, where that may be the fault of a lease.
std::optional<LeaseEnd> CauseOf(const Error& error) {
  if (error.code() != StatusCode::kInternal) return std::nullopt;  // the request's own numbers
  if (error.reason() == "NON_FINITE") return LeaseEnd::kNotFinite;
  if (error.reason() == "DEGENERATE") return LeaseEnd::kDegenerate;
  if (error.reason() == "BUDGET") return LeaseEnd::kBudget;
  return std::nullopt;
}

const TrajectoryWork* TrajectoryOf(const EngineWork& work) {
  const bool has_steps = work.is_job() || work.is_session();
  return has_steps ? static_cast<const TrajectoryWork*>(&work) : nullptr;
}

std::string Whose(const EngineWork& work) {
  const TrajectoryWork* own = TrajectoryOf(work);
  if (own == nullptr) return "a Denoise call";
  return (work.is_job() ? "job " : "session ") + own->id;
}

// The unit that a work has done last.
std::string Which(const EngineWork& work, const Unit& unit) {
  if (unit.kind == UnitKind::kEncodePrompt) return "a prompt";
  if (unit.kind == UnitKind::kDecode) return "a chunk of frames";
  const TrajectoryWork* own = TrajectoryOf(work);
  return own == nullptr ? "the step" : "step " + std::to_string(own->generation->steps_done());
}

// Of a work whose unit went wrong under `leases`: has its planner avoid others, and gives those.
std::vector<Wish> AvoidNext(EngineWork* work, const std::vector<Wish>& leases) {
  constexpr int kOneByOne = 8;
  Redo& redo = *work->redo;
  if (redo.under.empty()) redo.under = leases;
  const auto revealed = std::ranges::find_if(leases, [&](const Wish& lease) {
    return std::ranges::count(redo.under, lease.lease_id, &Wish::lease_id) == 0;
  });
  const bool any = revealed != leases.end() || redo.next < redo.under.size();
  if (!any || ++redo.tries > kOneByOne) {
    work->planner->AvoidLeases();
    return leases;
  }
  if (revealed != leases.end()) {
    work->planner->Avoid(revealed->lease_id);
    return {*revealed};
  }
  const Wish& lease = redo.under[redo.next++];
  work->planner->AvoidOnly(lease.lease_id);
  return {lease};
}

CallGuard& GuardOf(const EngineWork& work) { return *work.pipeline->planner_setting().guard; }

}  // namespace

// The work is put back, or has ended, where this is true.
bool EngineImpl::TriesAgain(const WorkPtr& work, const Error& error) {
  work->planner->Undone();
  const auto failure = GuardOf(*work).TakeFailure();
  if (WhyStop(*work)) return false;
  if (failure) return TryWithout({work}, *failure);
  const auto cause = CauseOf(error);
  if (!cause) return false;
  if (cause == LeaseEnd::kBudget) return TryWithoutBroken(work, error);
  return TryWithoutLeases(work, error, *cause);
}

// The error names the lease, of which there is no doubt: it ends at once, so that nobody else's
// next unit runs under it.
bool EngineImpl::TryWithoutBroken(const WorkPtr& work, const Error& error) {
  const std::vector<Wish> leases = work->planner->Leased();
  const auto broken = std::ranges::find(leases, error.field(), &Wish::lease_id);
  if (broken == leases.end()) return false;
  policy_->End(broken->lease_id, LeaseEnd::kBudget, Whose(*work) + ": " + error.what());
  work->planner->Unpin(broken->lease_id);
  if (!work->redo) work->redo = std::make_unique<Redo>(Redo{error});
  work->redo->suspects.push_back({*broken, LeaseEnd::kBudget, error.what()});
  PutBack(work);
  return true;
}

// Takes away each lease by itself that layers of the unit ran under, and with it what then runs
// under weaker ones in its place, until the unit goes well: what was taken away last is to blame.
// After a few tries all go at once. Where it fails without any, they are innocent, and it fails as
// it would have; what merely looks wrong is taken.
bool EngineImpl::TryWithoutLeases(const WorkPtr& work, const Error& error, LeaseEnd cause) {
  const std::vector<Wish> leases = work->planner->Leased();
  if (leases.empty()) {
    if (!work->redo || cause != LeaseEnd::kDegenerate) return false;
    if (CauseOf(work->redo->first) == cause) GiveUp(work.get());
    work->planner->TakeAsItIs();
    PutBack(work);
    return true;
  }
  if (!work->redo) work->redo = std::make_unique<Redo>(Redo{error});
  // A broken budget was one whatever else is wrong.
  std::erase_if(work->redo->suspects,
                [](const Redo::Suspect& suspect) { return suspect.cause != LeaseEnd::kBudget; });
  for (Wish& lease : AvoidNext(work.get(), leases)) {
    work->redo->suspects.push_back({std::move(lease), cause, error.what()});
  }
  PutBack(work);
  return true;
}

// Of works whose unit nobody has done; all are put back or ended where this is true. Not where
// memory ran out for several at once: fewer may do with the same backend. What ran out depends on
// all that is held, so that no circuit breaker counts it.
bool EngineImpl::TryWithout(const std::vector<WorkPtr>& works, const CallFailure& failure) {
  const bool memory = failure.error.reason() == "MEMORY";
  if (works.size() > 1 && memory) return false;
  const AttentionSpec* spec = nullptr;
  for (const WorkPtr& work : works) {
    if (const AttentionSpec* own = work->planner->Runs(failure.backend, failure.role)) spec = own;
  }
  if (spec == nullptr) return false;
  const std::string what = CutText(failure.error.what(), kMaxSaid);
  if (!memory) GuardOf(*works.front()).breakers().Failed(failure.backend, *spec, what);
  logger_->Warning("attention.failed", {{"model", works.front()->pipeline->info().name},
                                        {"backend", NameOf(failure.backend)},
                                        {"shape", ShapeClass(*spec)},
                                        {"message", what}});
  TellBreakers(*works.front());
  for (const WorkPtr& work : works) {
    if (const auto why = WhyStop(*work)) {
      End(work, why);
      continue;
    }
    if (work->planner->Runs(failure.backend, failure.role) != nullptr) {
      if (!work->redo) work->redo = std::make_unique<Redo>(Redo{failure.error});
      work->redo->failures.push_back({failure.backend, what});
      work->planner->Avoid(failure.backend, failure.role, "failed in this unit: " + what);
    }
    PutBack(work);
  }
  return true;
}

// As it would have failed at first; with why there is no other way, where there is none.
Error EngineImpl::WhyFailed(const EngineWork& work, const Error& error) const {
  if (error.reason() == "BUDGET") return WhyStop(work).value_or(error);
  if (!work.redo || WhyStop(work)) return error;
  const Error& first = work.redo->first;
  if (first.reason() == "BUDGET") return error;  // that alone fails nobody
  if (error.reason() != "BACKEND_REFUSED") return first;
  return Error(first.code(), std::string(first.what()) + "; without it: " + error.what(),
               error.field(), first.reason())
      .Detailed(error.details());
}

// The unit is not done once more: its next one begins with all that is wished for.
void EngineImpl::GiveUp(EngineWork* work) const {
  work->redo.reset();
  if (work->planner) work->planner->AvoidNothing();
}

// A unit is done. Where it was done once more, what it was done without is to blame.
void EngineImpl::WentWell(EngineWork* work, const Unit& unit) {
  TellBreakers(*work);
  if (!work->redo) return;
  const auto redo = std::exchange(work->redo, nullptr);
  const std::string again = Which(*work, unit) + " was undone and done again without ";
  for (const Redo::Suspect& suspect : redo->suspects) RollBack(work, suspect, again);
  for (const Redo::Failure& failure : redo->failures) {
    work->planner->AddNote(again + NameOf(failure.backend) + ", which failed: " + failure.what);
    observer_->OnRollback(failure.backend, "failed");
  }
}

// The lease ends, wherever it held. A pinned job is freed of it, also of one that has ended before.
void EngineImpl::RollBack(EngineWork* work, const Redo::Suspect& suspect,
                          const std::string& again) {
  const Wish& lease = suspect.lease;
  const std::string cause(LeaseEndName(suspect.cause));
  const std::string why =
      again + lease.lease_id + " (" + NameOf(lease.backend) + "): " + suspect.what;
  work->planner->AddNote(why);
  work->planner->Unpin(lease.lease_id);
  AuditEntry entry{.who = "server", .what = "rollback", .subject = lease.lease_id};
  entry.old_value = NameOf(lease.backend);
  if (const auto now = work->planner->Current(AttentionRole::kSelf)) entry.new_value = NameOf(*now);
  entry.reason = cause + ": " + Whose(*work) + ": " + why;
  audit_.Write(std::move(entry));
  policy_->End(lease.lease_id, suspect.cause, Whose(*work) + ": " + why);
  observer_->OnRollback(lease.backend, cause);
}

// Into the audit, and so into the log: circuit breakers of the work's model that opened or closed.
void EngineImpl::TellBreakers(const EngineWork& work) {
  for (const Breakers::Change& change : GuardOf(work).breakers().TakeChanges()) {
    AuditEntry entry{.who = "server", .what = "breaker"};
    entry.subject =
        NameOf(change.backend) + " of " + work.pipeline->info().name + ", " + change.shape;
    entry.old_value = BreakerStateName(change.from);
    entry.new_value = BreakerStateName(change.to);
    if (change.to == BreakerState::kOpen) {
      entry.reason = std::to_string(change.failures) + " failures: " + change.last_error;
      entry.ends_at = std::chrono::system_clock::now() + Breakers::kOpenFor;
    } else {
      entry.reason = "a probe went well";
    }
    audit_.Write(std::move(entry));
  }
}

}  // namespace denoised
