// What to draw, and how, of a GenerationRequest or a SessionOpen: all that the two share but who
// asks (tenant, priority), which stays with their converters. See convert.h.
#ifndef DENOISED_SERVER_CONVERT_TRAJECTORY_H_
#define DENOISED_SERVER_CONVERT_TRAJECTORY_H_

#include <utility>

#include "server/convert.h"

namespace denoised {

// The message's latents are taken out of it.
template <class Message>
GenerationRequest TrajectoryFromProto(Message* message) {
  GenerationRequest request;
  request.model = message->model();
  request.prompt = message->prompt();
  if (message->has_negative_prompt()) request.negative_prompt = message->negative_prompt();
  if (message->has_seed()) request.seed = message->seed();
  if (message->has_height()) request.height = message->height();
  if (message->has_width()) request.width = message->width();
  if (message->has_num_frames()) request.num_frames = message->num_frames();
  if (message->has_num_inference_steps()) {
    request.num_inference_steps = message->num_inference_steps();
  }
  if (message->has_guidance_scale()) request.guidance_scale = message->guidance_scale();
  if (message->has_flow_shift()) request.flow_shift = message->flow_shift();
  if (message->has_max_sequence_length()) {
    request.max_sequence_length = message->max_sequence_length();
  }
  request.attention = FromProto(message->attention());
  request.numerics = FromProto(message->numerics());
  if (message->has_latents()) {
    request.latents = FromProto(std::move(*message->mutable_latents()), "latents");
  }
  return request;
}

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_TRAJECTORY_H_
