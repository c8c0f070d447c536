#include "server/session_convert.h"

#include <utility>

#include "server/convert.h"
#include "server/convert_trajectory.h"

namespace denoised {
namespace {

SessionWrite WriteOf(v1::SessionWrite* message) {
  SessionWrite write;
  if (message->has_latents()) {
    write.latents = FromProto(std::move(*message->mutable_latents()), "latents");
  }
  if (message->has_step()) write.step = message->step();
  write.keep_history = message->keep_history();
  return write;
}

SessionSet SetOf(const v1::SessionSet& message) {
  SessionSet set;
  if (message.has_guidance_scale()) set.guidance_scale = message.guidance_scale();
  if (message.has_attention()) set.attention = FromProto(message.attention());
  return set;
}

void FillOpened(const SessionOpened& opened, v1::SessionOpened* message) {
  *message->mutable_parameters() = ToProto(opened.parameters);
  message->mutable_latents_shape()->Add(opened.latents_shape.begin(), opened.latents_shape.end());
  message->mutable_sigmas()->Add(opened.sigmas.begin(), opened.sigmas.end());
}

void FillStepped(const SessionReply& reply, v1::SessionStepped* message) {
  *message->mutable_receipt() = ToProto(reply.receipt.value_or(Receipt{}));
  message->set_seconds(reply.seconds);
  message->set_queue_seconds(reply.queue_seconds);
}

}  // namespace

SessionRequest FromProto(v1::SessionOpen&& message) {
  SessionRequest request;
  request.generation = TrajectoryFromProto(&message);
  request.generation.priority = FromProto(message.priority());
  request.generation.tenant = message.tenant();
  SessionGiven& given = request.given;
  if (message.has_encoder_hidden_states()) {
    given.encoder_hidden_states =
        FromProto(std::move(*message.mutable_encoder_hidden_states()), "encoder_hidden_states");
  }
  if (message.has_negative_encoder_hidden_states()) {
    given.negative_encoder_hidden_states =
        FromProto(std::move(*message.mutable_negative_encoder_hidden_states()),
                  "negative_encoder_hidden_states");
  }
  given.sigmas.assign(message.sigmas().begin(), message.sigmas().end());
  return request;
}

SessionVerb FromProto(v1::SessionRequest&& message) {
  switch (message.verb_case()) {
    case v1::SessionRequest::kStep:
      return SessionStep{message.step().has_count() ? message.step().count() : 1};
    case v1::SessionRequest::kRead:
      return SessionRead{};
    case v1::SessionRequest::kWrite:
      return WriteOf(message.mutable_write());
    case v1::SessionRequest::kFork:
      return SessionFork{};
    case v1::SessionRequest::kSet:
      return SetOf(message.set());
    case v1::SessionRequest::kClose:
      return SessionClose{};
    default:
      throw InvalidField("verb", "one of open, step, read, write, fork, set and close");
  }
}

bool IsLarge(const v1::SessionRequest& request) {
  return request.has_open() || request.has_read() || request.write().has_latents();
}

v1::SessionResponse ToProto(SessionReply&& reply, v1::SessionRequest::VerbCase verb,
                            const std::string& request_id) {
  v1::SessionResponse message;
  message.set_session_id(reply.state.id);
  message.set_step(reply.state.step);
  message.set_num_steps(reply.state.num_steps);
  message.set_sigma(reply.state.sigma);
  if (reply.error) {
    *message.mutable_error() = ToProto(ToJobError(*reply.error));
    return message;
  }
  if (reply.opened) FillOpened(*reply.opened, message.mutable_opened());
  if (reply.receipt) FillStepped(reply, message.mutable_stepped());
  if (reply.latents) *message.mutable_latents() = ToProto(std::move(*reply.latents));
  if (verb == v1::SessionRequest::kWrite) message.mutable_written();
  if (verb == v1::SessionRequest::kSet) message.mutable_set();
  if (verb == v1::SessionRequest::kClose) message.mutable_closed();
  if (verb != v1::SessionRequest::kFork) return message;
  message.set_session_id(reply.forked);
  message.mutable_forked()->set_parent_id(request_id);
  return message;
}

}  // namespace denoised
