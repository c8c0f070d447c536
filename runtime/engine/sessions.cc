// Sessions on the engine thread: between two units one verb of each that waits for one; steps are
// work in the queue like any other.
#include <map>
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/ids.h"
#include "runtime/engine/receipt.h"
#include "runtime/engine/refusals.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

// What nobody says: idle ends.
constexpr std::chrono::milliseconds kLook(100);

SessionState StateOf(const SessionWork& session) {
  SessionState state;
  state.id = session.id;
  state.num_steps = session.parameters.num_inference_steps;
  if (session.generation == nullptr) return state;
  state.step = session.generation->steps_done();
  state.sigma = session.generation->Sigmas().at(static_cast<size_t>(state.step));
  return state;
}

// Its next `count` steps, and what has to be done before them.
std::vector<PlannedUnits> UnitsOf(const SessionWork& session, int64_t count) {
  std::vector<PlannedUnits> units;
  for (PlannedUnits planned : session.estimate->units) {
    const UnitKind kind = planned.unit.kind;
    if (kind == UnitKind::kStep) planned.count = count;
    if (kind == UnitKind::kStep || session.generation->Next().kind == kind)
      units.push_back(planned);
  }
  return units;
}

Error Idle(std::chrono::milliseconds idle) {
  return Error(StatusCode::kAborted,
               "nothing was asked of the sessions for " +
                   std::to_string(static_cast<double>(idle.count()) / 1000) +
                   " s (the server's --session_idle)",
               "", "SESSION_IDLE");
}

Error PastTheEnd(int64_t count, int64_t left) {
  return Error(StatusCode::kOutOfRange,
               "count: " + std::to_string(left) + " steps are left, and " + std::to_string(count) +
                   " were asked for",
               "count", "NO_STEPS_LEFT");
}

}  // namespace

void EngineImpl::ServeSessions() {
  std::vector<SessionPtr> sessions;
  {
    const std::lock_guard lock(mutex_);
    const bool news = std::exchange(session_news_, false);
    if (table_.sessions() == 0) return;
    const auto now = SteadyClock::now();
    if (!news && now < sessions_seen_ + kLook) return;
    if (news) tuning_.MakeWay();
    sessions_seen_ = now;
    sessions = table_.Sessions();
  }
  for (const SessionPtr& session : sessions) Serve(session);
  for (const SessionPtr& session : sessions) {
    if (session->unloaded && !session->steps) CloseUnloaded(session);
  }
  EndOwners();
}

// Whom it leaves without a session is told.
void EngineImpl::CloseUnloaded(const SessionPtr& session) {
  const Error why = Unloaded(session->parameters.model);
  CloseSession(session, why);
  const std::shared_ptr<SessionOwner> owner = session->owner;
  {
    const std::lock_guard lock(mutex_);
    for (const SessionPtr& other : table_.Sessions()) {
      if (other->owner == owner) return;
    }
  }
  if (!owner->gone->cancelled && owner->ended) owner->ended(why);
}

void EngineImpl::Serve(const SessionPtr& session) {
  if (session->steps || WhyStop(*session)) return;
  if (session->opened) return Open(session);
  SessionWork::Asked asked;
  {
    const std::lock_guard lock(mutex_);
    if (session->asked.empty()) return;
    asked = std::move(session->asked.front());
    session->asked.pop_front();
    table_.ReleaseRequest(asked.bytes);
  }
  SessionReply reply;
  reply.error = asked.refused;
  if (reply.error) return Answer(session.get(), asked.done, std::move(reply));
  if (std::holds_alternative<SessionStep>(asked.verb)) {
    return BeginSteps(session, std::move(asked));
  }
  if (std::holds_alternative<SessionClose>(asked.verb)) {
    reply.state = StateOf(*session);
    CloseSession(session, UnknownSession(session->id));
    return asked.done(std::move(reply));  // by then there is room
  }
  reply.error = OnDevice(session.get(), [&] { Do(session.get(), asked.verb, &reply); });
  Answer(session.get(), asked.done, std::move(reply));
}

void EngineImpl::Open(const SessionPtr& session) {
  const SessionDone done = std::exchange(session->opened, nullptr);
  SessionReply reply;
  reply.error = OnDevice(session.get(), [&] { BeginSession(session.get()); });
  if (reply.error) {
    CloseSession(session, *reply.error);
    return done(std::move(reply));
  }
  reply.opened = {session->parameters, session->pipeline->LatentShape(session->parameters),
                  session->generation->Sigmas()};
  Answer(session.get(), done, std::move(reply));
}

void EngineImpl::BeginSession(SessionWork* session) {
  HoldOrder(session);
  session->planner = std::make_unique<AttentionPlanner>(session->pipeline->planner_setting(),
                                                        SubjectOf(*session), observer_);
  RequireMemoryNow(session);
  RunRequest request;
  request.prompt = session->request.prompt;
  request.job_id = session->id;
  request.parameters = session->parameters;
  request.latents = std::exchange(session->request.latents, std::nullopt);
  request.planner = session->planner.get();
  request.observer = observer_;
  request.decode = RunRequest::Decode::kNothing;
  request.release_text_encoder = session->estimate->releases_text_encoder;
  request.given = std::exchange(session->given, {});
  session->generation = session->pipeline->NewRun(std::move(request));
}

void EngineImpl::Answer(SessionWork* session, const SessionDone& done, SessionReply reply) {
  reply.state = StateOf(*session);
  {
    const std::lock_guard lock(mutex_);
    session->used = clock_();
    session_news_ = session_news_ || !session->asked.empty();
  }
  done(std::move(reply));
}

// Verbs but steps and closes. What it throws leaves the session as it was.
void EngineImpl::Do(SessionWork* session, const SessionVerb& verb, SessionReply* reply) {
  if (std::holds_alternative<SessionRead>(verb)) reply->latents = session->generation->Latents();
  if (std::holds_alternative<SessionFork>(verb)) reply->forked = Fork(*session);
  if (const auto* write = std::get_if<SessionWrite>(&verb)) Write(session, *write);
  if (const auto* set = std::get_if<SessionSet>(&verb)) Set(session, *set);
}

void EngineImpl::Write(SessionWork* session, const SessionWrite& write) {
  std::string history =
      AddChange(session->history, write, write.step.value_or(session->generation->steps_done()));
  session->generation->Write(write);
  session->history = std::move(history);
  session->changed = true;
}

void EngineImpl::Set(SessionWork* session, const SessionSet& set) {
  double* const guidance = &session->parameters.guidance_scale;
  const double guided = *guidance;
  const AttentionOptions attention = session->request.attention;
  const EstimatePtr estimate = session->estimate;
  *guidance = set.guidance_scale.value_or(guided);
  session->request.attention = set.attention.value_or(attention);
  const auto error = Caught([&] {
    CheckAttention(session);
    RequireMemoryNow(session);
    if (*guidance != guided) session->generation->SetGuidance(*guidance);
  });
  if (error) {
    *guidance = guided;
    session->request.attention = attention;
    const std::lock_guard lock(mutex_);
    table_.ChangeEstimate(session, estimate);
    throw *error;
  }
  if (set.attention) session->planner->SetSubject(SubjectOf(*session));
  if (*guidance == guided) return;
  session->history = AddChange(session->history, *guidance, session->parameters.negative_prompt);
  session->changed = true;
}

// The id of the new one.
std::string EngineImpl::Fork(const SessionWork& session) {
  const auto fork = std::make_shared<SessionWork>();
  fork->id = NewId();
  fork->pipeline = session.pipeline;
  fork->tenant = session.tenant;
  fork->priority = session.priority;
  fork->cancel = session.cancel;
  fork->owner = session.owner;
  fork->backend = session.backend;
  fork->request = session.request;
  fork->parameters = session.parameters;
  fork->order = session.order;
  fork->has_prompts = session.has_prompts;
  fork->can_guide = session.can_guide;
  fork->fields = session.fields;
  fork->history = session.history;
  fork->changed = session.changed;
  fork->used = clock_();
  fork->planner = std::make_unique<AttentionPlanner>(session.pipeline->planner_setting(),
                                                     SubjectOf(*fork), observer_);
  fork->planner->GoOnFrom(*session.planner);
  fork->generation = session.generation->Fork(fork->id, fork->planner.get());
  {
    const std::lock_guard lock(mutex_);
    EnterSession(fork);
  }
  const auto error = Caught([&] { RequireMemoryNow(fork.get()); });
  if (error) {
    CloseSession(fork, *error);
    throw *error;
  }
  return fork->id;
}

// ---- steps -------------------------------------------------------------------------------------

void EngineImpl::BeginSteps(const SessionPtr& session, SessionWork::Asked asked) {
  const int64_t count = std::get<SessionStep>(asked.verb).count;
  const int64_t left = session->parameters.num_inference_steps - session->generation->steps_done();
  if (count > left) {
    SessionReply reply;
    reply.error = PastTheEnd(count, left);
    return Answer(session.get(), asked.done, std::move(reply));
  }
  session->steps = std::move(asked);
  session->steps_wanted = count;
  session->step_seconds = 0;
  session->left = UnitsOf(*session, count);
  session->arrived = clock_();
  const std::lock_guard lock(mutex_);
  table_.EnterSteps(session, Queued(*session));
}

void EngineImpl::SessionUnitDone(const SessionPtr& session, const Unit& unit,
                                 const UnitTime& time) {
  session->step_seconds += time.seconds;
  if (unit.kind == UnitKind::kStep) {
    --session->steps_wanted;
    session->history = AddStep(session->history, session->planner->Last());
    session->backend = session->planner->Current(AttentionRole::kSelf).value_or(session->backend);
    observer_->OnStep(session->parameters.model, time.seconds);
  }
  session->steps_wanted > 0 ? PutBack(session) : StepsEnded(session, std::nullopt);
}

// All of them, or those before one that failed or was stopped.
void EngineImpl::StepsEnded(const SessionPtr& session, const std::optional<Error>& error) {
  {
    const std::lock_guard lock(mutex_);
    table_.LeaveQueue(session.get());
    session_news_ = true;
  }
  if (error) GiveUp(session.get());
  const SessionWork::Asked asked = *std::exchange(session->steps, std::nullopt);
  SessionReply reply;
  reply.error = error;
  reply.receipt = ReceiptOf(*session);
  reply.seconds = session->step_seconds;
  reply.queue_seconds = std::max(0.0, SecondsSince(asked.at) - reply.seconds);
  Answer(session.get(), asked.done, std::move(reply));
}

Receipt EngineImpl::ReceiptOf(const SessionWork& session) const {
  Receipt receipt = StampedReceipt(session, session.parameters.linear);
  receipt.fingerprint =
      Fingerprint(receipt, session.fields, session.changed ? session.history : "");
  return receipt;
}

// ---- ends --------------------------------------------------------------------------------------

// It is not in the queue. Who waits is told why.
void EngineImpl::CloseSession(const SessionPtr& session, const Error& why) {
  std::deque<SessionWork::Asked> asked;
  {
    const std::lock_guard lock(mutex_);
    session->ended = true;
    asked.swap(session->asked);
    for (const SessionWork::Asked& one : asked) table_.ReleaseRequest(one.bytes);
  }
  SessionReply reply;
  reply.state = StateOf(*session);
  reply.error = why;
  session->generation.reset();
  session->planner.reset();
  {
    const std::lock_guard lock(mutex_);
    table_.CloseSession(session.get());
  }
  for (const SessionWork::Asked& one : asked) one.done(reply);
  if (const SessionDone opened = std::exchange(session->opened, nullptr)) opened(reply);
  idle_.notify_all();
  ReturnUnusedMemory();
}

// Of all sessions of an owner, under mutex_: why they end now.
std::optional<Error> EngineImpl::WhyEnd(const std::vector<SessionPtr>& sessions) const {
  bool waits = false;
  auto used = sessions.front()->used;
  for (const SessionPtr& session : sessions) {
    if (session->steps || session->unloaded) return std::nullopt;
    waits = waits || session->opened || !session->asked.empty();
    used = std::max(used, session->used);
  }
  if (const auto why = WhyStop(*sessions.front())) return why;
  if (waits) return std::nullopt;
  if (draining_) return Draining();
  const std::chrono::milliseconds idle = options_.session_idle;
  if (idle.count() > 0 && clock_() >= used + idle) return Idle(idle);
  return std::nullopt;
}

// Those that the client left, those of a server that ends, and those that nobody asks for anything.
void EngineImpl::EndOwners() {
  std::vector<std::pair<std::vector<SessionPtr>, Error>> ends;
  {
    const std::lock_guard lock(mutex_);
    std::map<SessionOwner*, std::vector<SessionPtr>> owners;
    for (const SessionPtr& session : table_.Sessions()) {
      owners[session->owner.get()].push_back(session);
    }
    for (auto& [owner, sessions] : owners) {
      const auto why = WhyEnd(sessions);
      if (!why) continue;
      for (const SessionPtr& session : sessions) session->ended = true;
      ends.emplace_back(std::move(sessions), *why);
    }
  }
  for (const auto& [sessions, why] : ends) {
    const std::shared_ptr<SessionOwner> owner = sessions.front()->owner;
    for (const SessionPtr& session : sessions) CloseSession(session, why);
    if (!owner->gone->cancelled && owner->ended) owner->ended(why);
  }
}

}  // namespace denoised
