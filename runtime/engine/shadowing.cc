// Comparisons of backends beside the work: who may begin them, and when the engine thread has time.
#include <algorithm>

#include "backends/stop_point.h"
#include "runtime/cut_text.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/refusals.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

// How often an idle comparison looks whether somebody wants the device.
constexpr std::chrono::microseconds kLook(100);

constexpr size_t kMaxSaid = 300;  // of what a backend threw

Error ShadowsOff(const std::string& what, const std::string& field) {
  return Error(StatusCode::kFailedPrecondition,
               what + ": this server was started with --shadow_budget=0 and compares nothing",
               field, "SHADOWS_OFF");
}

// What CheckForce would say of one side.
LeaseRequest AsForce(AttnBackend backend, const std::string& parameters, const LeaseScope& scope) {
  LeaseRequest force{backend, parameters};
  force.scope = scope;
  return force;
}

}  // namespace

// ---- the callers' side: any thread -------------------------------------------------------------

ShadowInfo EngineImpl::Shadow(const ShadowRequest& request) {
  if (!shadows_.on()) throw ShadowsOff("a shadow cannot run", "");
  const auto check = [&](AttnBackend backend, const std::string& parameters, const char* side) {
    const auto refused = CheckForce(AsForce(backend, parameters, request.scope));
    if (refused) throw Renamed(*refused, "backend", side);
  };
  check(request.candidate, request.parameters, "candidate");
  if (request.baseline) check(*request.baseline, "", "baseline");
  ShadowInfo shadow = shadows_.Start(request);
  if (!draining()) return shadow;
  shadows_.Stop(shadow.id);  // it came while the others were ended
  throw Draining();
}

ShadowInfo EngineImpl::StopShadow(const std::string& id) {
  if (const auto stopped = shadows_.Stop(id)) return *stopped;
  throw Error(StatusCode::kNotFound, "no live shadow '" + id.substr(0, 64) + "'", "id",
              "SHADOW_NOT_FOUND");
}

std::optional<Error> EngineImpl::WhyNotJudged(const LeaseRequest& request) const {
  if (!request.budget || shadows_.on()) return std::nullopt;
  return ShadowsOff("budget: nobody would judge it", "budget");
}

// Rather no lease than one that nobody judges: those of an earlier process that could.
void EngineImpl::EndUnjudged() {
  if (shadows_.on()) return;
  for (const Lease& lease : policy_->List()) {
    if (!lease.budget) continue;
    policy_->End(lease.id, LeaseEnd::kBudget, ShadowsOff("nobody judges it", "").what());
  }
}

// Under mutex_. As much as comparisons may hold from now on.
int64_t EngineImpl::HeldForShadows() const {
  const uint64_t version = policy_->version();
  if (std::exchange(budgets_seen_, version) != version) {
    const auto has_budget = [](const Lease& lease) { return lease.budget.has_value(); };
    any_budget_ = std::ranges::any_of(*policy_->leases(), has_budget);
  }
  return any_budget_ || shadows_.any() ? shadows_.most_bytes() : 0;
}

// ---- the engine thread -------------------------------------------------------------------------

// What is measured and compared between units, and while there are none.
void EngineImpl::RunBeside(bool idle) {
  const Watchdog::Scope watched = WatchedBeside("measure backends");
  const auto error = OnDevice(nullptr, [&] {
    if (tuning_.RunDue(idle)) ReturnUnusedMemory();
    RunShadows(idle);
  });
  if (error) logger_->Warning("engine.measuring_failed", {{"message", error->what()}});
}

// In idle time one comparison, which ends where somebody comes; between two units those that what
// units have earned pays for.
void EngineImpl::RunShadows(bool idle) {
  shadows_.Forget(*policy_->leases(), policy_->version());
  if (idle) {
    RunIdleShadow();
  } else {
    while (shadows_.RunOne(/*idle=*/false)) continue;
  }
  for (const ShadowInfo& shadow : shadows_.TakeGivenUp()) {
    audit_.Write({.who = "server",
                  .what = "shadow",
                  .subject = shadow.id,
                  .old_value = std::string(AttnBackendName(shadow.request.candidate)),
                  .reason = CutText(shadow.end, kMaxSaid)});
  }
}

void EngineImpl::RunIdleShadow() {
  if (!shadows_.pending()) return;
  const auto start = SteadyClock::now();
  auto looked = start;
  const ScopedStopCheck stop([&]() -> std::optional<Error> {
    const auto now = SteadyClock::now();
    if (now - looked < kLook) return std::nullopt;
    looked = now;
    return SomebodySince() ? std::optional(Stopped()) : std::nullopt;
  });
  shadows_.RunOne(/*idle=*/true);
  // What came meanwhile has waited for it.
  const auto since = SomebodySince();
  if (!since) return;
  const std::chrono::duration<double> waited = SteadyClock::now() - std::max(start, *since);
  shadows_.HeldUp(std::max(0.0, waited.count()), /*inside_unit=*/false);
}

// Since when somebody has been waiting for the device; nothing where nobody is.
std::optional<SteadyClock::time_point> EngineImpl::SomebodySince() {
  const std::lock_guard lock(mutex_);
  const WorkPtr lead = NextLead();
  if (lead != nullptr) return lead->queued_at;
  if (stopping_ || session_news_ || !asked_.empty()) return SteadyClock::now();
  return std::nullopt;
}

}  // namespace denoised
