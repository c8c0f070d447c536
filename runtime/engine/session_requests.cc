// The callers' side of sessions: what is opened, asked and left. Any thread.
#include <utility>

#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/ids.h"
#include "runtime/engine/receipt.h"
#include "runtime/engine/refusals.h"
#include "runtime/request_check.h"

namespace denoised {
namespace {

// Prompts or embeddings, a schedule or noise levels: each is said once.
void CheckGiven(const GenerationRequest& request, const SessionGiven& given) {
  const auto unset = [](const std::string& field, bool is_unset, const std::string& beside) {
    if (!is_unset) throw InvalidField(field, "must be unset beside " + beside);
  };
  if (given.encoder_hidden_states) {
    unset("prompt", request.prompt.empty(), "encoder_hidden_states");
    unset("negative_prompt", !request.negative_prompt, "encoder_hidden_states");
    unset("max_sequence_length", !request.max_sequence_length, "encoder_hidden_states");
  } else if (given.negative_encoder_hidden_states) {
    throw InvalidField("negative_encoder_hidden_states", "needs encoder_hidden_states beside it");
  }
  if (given.sigmas.empty()) return;
  unset("num_inference_steps", !request.num_inference_steps, "sigmas");
  unset("flow_shift", !request.flow_shift, "sigmas");
}

// What tensors and levels say of sizes that are left open.
void TakeSizes(const SessionGiven& given, const GeometryRules& rules, GenerationRequest* request) {
  const auto take = [](std::optional<int64_t>* size, int64_t value) {
    if (!*size) *size = value;
  };
  if (request->latents && request->latents->shape.size() == 5) {
    CheckHostTensor(*request->latents, "latents");  // sizes that are no sizes
    const std::vector<int64_t>& shape = request->latents->shape;
    take(&request->num_frames, (shape[2] - 1) * rules.frame_stride + 1);
    take(&request->height, shape[3] * rules.spatial_stride);
    take(&request->width, shape[4] * rules.spatial_stride);
  }
  if (!given.sigmas.empty()) {
    request->num_inference_steps = static_cast<int64_t>(given.sigmas.size());
  }
  if (!given.encoder_hidden_states) return;
  const std::vector<int64_t>& shape = given.encoder_hidden_states->shape;
  if (shape.size() == 3) request->max_sequence_length = shape[1];
  if (!request->guidance_scale && !given.negative_encoder_hidden_states) {
    request->guidance_scale = 1;
  }
}

bool CanGuide(const SessionGiven& given) {
  return !given.encoder_hidden_states || given.negative_encoder_hidden_states;
}

void CheckWrite(const SessionWork& session, const SessionWrite& write) {
  if (!write.latents && !write.step) throw InvalidField("write", "wants latents, a step or both");
  if (write.step && write.keep_history) {
    throw InvalidField("keep_history",
                       "what the solver remembers belongs to the next step: set it "
                       "or step");
  }
  const int64_t steps = session.parameters.num_inference_steps;
  if (write.step && (*write.step < 0 || *write.step > steps)) {
    throw InvalidField("step", "must be between 0 and " + std::to_string(steps) + ", got " +
                                   std::to_string(*write.step));
  }
  if (write.latents) session.pipeline->CheckLatents(*write.latents, session.parameters);
}

void CheckSet(const SessionWork& session, const SessionSet& set) {
  if (!set.guidance_scale && !set.attention) {
    throw InvalidField("set", "wants guidance_scale, attention or both");
  }
  if (set.guidance_scale) {
    CheckLimit("guidance_scale", *set.guidance_scale);
    if (*set.guidance_scale > 1 && !session.can_guide) {
      throw InvalidField("guidance_scale",
                         "above 1 it needs negative_encoder_hidden_states, and the session was "
                         "opened without");
    }
  }
  if (!set.attention) return;
  // Of the session what never changes.
  const PlannerSubject subject = {*set.attention, session.tenant, session.id,
                                  session.parameters.num_inference_steps,
                                  session.request.pin_backends};
  CheckedAttention(*session.pipeline, session.parameters, subject);
}

// What can be said of a verb wherever the session stands. Sizes and counts of its parameters never
// change.
std::optional<Error> WhyRefuse(const SessionWork& session, const SessionVerb& verb) {
  return Caught([&] {
    if (const auto* step = std::get_if<SessionStep>(&verb); step != nullptr && step->count < 1) {
      throw InvalidField("count", "must be 1 or more, got " + std::to_string(step->count));
    }
    if (const auto* write = std::get_if<SessionWrite>(&verb)) CheckWrite(session, *write);
    if (const auto* set = std::get_if<SessionSet>(&verb)) CheckSet(session, *set);
  });
}

SessionReply RefusedReply(const std::string& id, const Error& why) {
  SessionReply reply;
  reply.state.id = id;
  reply.error = why;
  return reply;
}

}  // namespace

SessionPtr EngineImpl::Admit(SessionRequest asked) const {
  const auto session = std::make_shared<SessionWork>();
  session->pipeline = models_.Find(asked.generation.model);
  const Pipeline& pipeline = *session->pipeline;
  CheckGiven(asked.generation, asked.given);
  TakeSizes(asked.given, pipeline.rules(), &asked.generation);
  asked.generation.formats = {ArtifactFormat::kSafetensors};  // reading copies as much
  session->id = NewId();
  session->parameters =
      ResolveRequest(asked.generation, pipeline.info().defaults, pipeline.rules());
  if (!asked.generation.seed) session->parameters.seed = DrawSeed();
  session->can_guide = CanGuide(asked.given);
  if (session->parameters.guidance_scale > 1 && !session->can_guide) {
    throw InvalidField("negative_encoder_hidden_states", "needed when guidance_scale is above 1");
  }
  pipeline.CheckSession(asked, session->parameters);
  session->has_prompts = !asked.given.encoder_hidden_states;
  session->bytes = BytesOf(asked.generation) + BytesOf(asked.given);
  session->fields = SessionFields(asked.generation, asked.given, session->parameters);
  session->request = std::move(asked.generation);
  session->given = std::move(asked.given);
  FillIn(session.get());
  return session;
}

void EngineImpl::EnterSession(const SessionPtr& session) {
  models_.Find(session->parameters.model);  // throws where it was unloaded meanwhile
  if (table_.sessions() >= options_.max_sessions) {
    throw Error(StatusCode::kResourceExhausted,
                std::to_string(table_.sessions()) + " sessions are open, as many as there may be",
                "", "TOO_MANY_SESSIONS");
  }
  RequireNoPressure();
  table_.OpenSession(session);
}

void EngineImpl::OpenSession(std::shared_ptr<SessionOwner> owner, SessionRequest request,
                             SessionDone done) {
  const auto refusal = Caught([&] {
    const SessionPtr session = Admit(std::move(request));
    session->owner = owner;
    session->cancel = owner->gone;
    session->opened = done;
    const std::lock_guard lock(mutex_);
    if (draining_) throw Draining();
    EnterSession(session);
    session_news_ = true;
  });
  if (refusal) return done(RefusedReply("", *refusal));
  wake_.notify_one();
}

void EngineImpl::AskSession(const std::shared_ptr<SessionOwner>& owner, const std::string& id,
                            SessionVerb verb, SessionDone done) {
  // Under mutex_. A drain comes first: it may be why there is none.
  const auto find = [&] {
    if (draining_) throw Draining();
    const SessionPtr session = table_.Session(id);
    const bool there = session != nullptr && session->owner == owner && !session->ended;
    if (!there) throw UnknownSession(id);
    return session;
  };
  const auto refusal = Caught([&] {
    SessionPtr session;
    {
      const std::lock_guard lock(mutex_);
      session = find();
    }
    const int64_t bytes = BytesOf(verb);
    const auto refused = WhyRefuse(*session, verb);
    SessionWork::Asked asked{std::move(verb), refused, done, bytes};
    const std::lock_guard lock(mutex_);
    find();  // it may have ended meanwhile
    session->asked.push_back(std::move(asked));
    session->used = clock_();
    table_.HoldRequest(bytes);
    session_news_ = true;
  });
  if (refusal) return done(RefusedReply(id, *refusal));
  wake_.notify_one();
}

void EngineImpl::LeaveSessions(const std::shared_ptr<SessionOwner>& owner) {
  {
    const std::lock_guard lock(mutex_);
    owner->gone->cancelled = true;
    session_news_ = true;
    for (const SessionPtr& session : table_.Sessions()) {
      if (session->owner == owner) asked_.push_back(session->number);  // where it steps
    }
  }
  wake_.notify_one();
}

int64_t EngineImpl::open_sessions() const {
  const std::lock_guard lock(mutex_);
  return table_.sessions();
}

}  // namespace denoised
