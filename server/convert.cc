#include "server/convert.h"

#include <algorithm>
#include <array>
#include <utility>

#include "server/convert_trajectory.h"

namespace denoised {
namespace {

// In JobState's order.
constexpr std::array<v1::JobState, 6> kStates = {v1::QUEUED,    v1::RUNNING, v1::SUSPENDED,
                                                 v1::SUCCEEDED, v1::FAILED,  v1::CANCELLED};

std::vector<ArtifactFormat> FormatsFromProto(const v1::GenerationRequest& message) {
  std::vector<ArtifactFormat> formats;
  for (int i = 0; i < message.formats_size(); ++i) {
    const auto format = FromProto(message.formats(i));
    const std::string field = "formats[" + std::to_string(i) + "]";
    if (!format) throw InvalidField(field, "a format must be named");
    if (std::count(formats.begin(), formats.end(), *format) > 0) {
      throw InvalidField(field, "named twice: " + std::string(ArtifactFormatName(*format)));
    }
    formats.push_back(*format);
  }
  return formats;
}

void FillProgress(const JobSnapshot& job, v1::Job* message) {
  message->set_id(job.id);
  message->set_sequence(job.sequence);
  message->set_state(kStates[static_cast<size_t>(job.state)]);
  message->set_stage(std::string(JobStageName(job.stage)));
  message->set_step(job.step);
  message->set_num_steps(job.num_steps);
  if (job.eta_seconds) *message->mutable_eta() = DurationToProto(*job.eta_seconds);
  message->set_queue_position(job.queue_position);
  if (job.starts_in_seconds) {
    *message->mutable_starts_in() = DurationToProto(*job.starts_in_seconds);
  }
  message->set_attempt(job.attempt);
  message->set_priority(static_cast<v1::Priority>(static_cast<int>(job.priority) + 1));
  message->set_tenant(job.tenant);
}

void FillTimes(const JobSnapshot& job, v1::Job* message) {
  *message->mutable_created_at() = TimeToProto(job.created_at);
  if (job.started_at) *message->mutable_started_at() = TimeToProto(*job.started_at);
  if (job.finished_at) *message->mutable_finished_at() = TimeToProto(*job.finished_at);
  for (const auto& [stage, seconds] : job.stage_seconds) {
    v1::StageTime* time = message->add_stage_times();
    time->set_stage(std::string(JobStageName(stage)));
    time->set_seconds(seconds);
  }
}

PreviewOptions PreviewFromProto(const v1::PreviewOptions& message) {
  PreviewOptions options;
  if (message.has_every_steps()) options.every_steps = message.every_steps();
  if (message.has_max_side()) options.max_side = message.max_side();
  return options;
}

}  // namespace

NumericsOptions FromProto(const v1::NumericsOptions& message) {
  NumericsOptions options;
  if (!message.has_linear()) return options;
  options.linear = LinearNumericsFromName(message.linear());
  if (options.linear) return options;
  throw InvalidField("numerics.linear", "wanted one of " +
                                            LinearNumericsNames(AllLinearNumerics()) + ", got \"" +
                                            message.linear() + "\"");
}

Priority FromProto(v1::Priority priority) {
  if (!v1::Priority_IsValid(priority)) {
    throw InvalidField("priority",
                       "BATCH, NORMAL or URGENT, got number " + std::to_string(priority));
  }
  if (priority == v1::PRIORITY_UNSPECIFIED) return Priority::kNormal;
  return static_cast<Priority>(priority - 1);
}

GenerationRequest FromProto(v1::GenerationRequest&& message) {
  GenerationRequest request = TrajectoryFromProto(&message);
  if (message.has_fps()) request.fps = message.fps();
  request.formats = FormatsFromProto(message);
  if (message.has_time_limit()) {
    request.deadline =
        std::chrono::steady_clock::now() + FromProto(message.time_limit(), "time_limit");
  }
  request.priority = FromProto(message.priority());
  request.tenant = message.tenant();
  request.idempotency_key = message.idempotency_key();
  request.best_effort_deadline = message.best_effort_deadline();
  if (message.has_preview()) request.preview = PreviewFromProto(message.preview());
  request.pin_backends = message.pin_backends();
  return request;
}

DenoiseRequest FromProto(v1::DenoiseRequest&& message) {
  DenoiseRequest request;
  request.model = message.model();
  const auto tensor = [](v1::Tensor* from, const char* field) {
    return FromProto(std::move(*from), field);
  };
  request.latents = tensor(message.mutable_latents(), "latents");
  request.timestep = tensor(message.mutable_timestep(), "timestep");
  request.encoder_hidden_states =
      tensor(message.mutable_encoder_hidden_states(), "encoder_hidden_states");
  if (message.has_negative_encoder_hidden_states()) {
    request.negative_encoder_hidden_states =
        tensor(message.mutable_negative_encoder_hidden_states(), "negative_encoder_hidden_states");
  }
  if (message.has_guidance_scale()) request.guidance_scale = message.guidance_scale();
  if (!v1::DenoiseOutput_IsValid(message.output())) {
    throw InvalidField(
        "output", "PREDICTION or NEXT_LATENTS, got number " + std::to_string(message.output()));
  }
  if (message.output() == v1::NEXT_LATENTS) {
    request.output = DenoiseRequest::Output::kNextLatents;
    if (!message.has_sigma()) throw InvalidField("sigma", "needed for NEXT_LATENTS");
    if (!message.has_sigma_next()) throw InvalidField("sigma_next", "needed for NEXT_LATENTS");
  }
  request.sigma = message.sigma();
  request.sigma_next = message.sigma_next();
  request.attention = FromProto(message.attention());
  request.numerics = FromProto(message.numerics());
  return request;
}

std::optional<ArtifactFormat> FromProto(v1::ArtifactFormat format) {
  if (format == v1::ARTIFACT_FORMAT_UNSPECIFIED) return std::nullopt;
  if (!v1::ArtifactFormat_IsValid(format)) {
    throw InvalidField("format",
                       "MP4, GIF, PNG, NPY or SAFETENSORS, got number " + std::to_string(format));
  }
  return static_cast<ArtifactFormat>(format - 1);
}

std::optional<JobState> FromProto(v1::JobState state) {
  if (state == v1::JOB_STATE_UNSPECIFIED) return std::nullopt;
  if (!v1::JobState_IsValid(state)) {
    throw InvalidField("state", "no job state has number " + std::to_string(state));
  }
  const auto found = std::find(kStates.begin(), kStates.end(), state);
  return static_cast<JobState>(found - kStates.begin());
}

v1::Job ToProto(const JobSnapshot& job) {
  v1::Job message;
  FillProgress(job, &message);
  message.set_prompt(job.prompt);
  *message.mutable_parameters() = ToProto(job.parameters);
  FillTimes(job, &message);
  *message.mutable_receipt() = ToProto(job.receipt);
  for (const ArtifactInfo& info : job.artifacts) *message.add_artifacts() = ToProto(info);
  if (job.error) *message.mutable_error() = ToProto(*job.error);
  return message;
}

v1::Preview ToProto(const JobPreview& preview) {
  v1::Preview message;
  message.set_step(preview.step);
  message.set_png(preview.png);
  return message;
}

v1::GenerationParameters ToProto(const ResolvedParameters& parameters) {
  v1::GenerationParameters message;
  message.set_model(parameters.model);
  message.set_seed(parameters.seed);
  message.set_height(parameters.height);
  message.set_width(parameters.width);
  message.set_num_frames(parameters.num_frames);
  message.set_fps(parameters.fps);
  message.set_num_inference_steps(parameters.num_inference_steps);
  message.set_guidance_scale(parameters.guidance_scale);
  message.set_flow_shift(parameters.flow_shift);
  message.set_max_sequence_length(parameters.max_sequence_length);
  message.set_negative_prompt(parameters.negative_prompt);
  message.set_scheduler(parameters.scheduler);
  message.mutable_numerics()->set_linear(std::string(LinearNumericsName(parameters.linear)));
  return message;
}

v1::JobError ToProto(const JobError& error) {
  v1::JobError message;
  message.set_code(static_cast<int>(error.code));
  message.set_message(error.message);
  message.set_field(error.field);
  message.set_reason(error.reason);
  return message;
}

v1::ArtifactFormat ToProto(ArtifactFormat format) {
  return static_cast<v1::ArtifactFormat>(static_cast<int>(format) + 1);
}

v1::ArtifactInfo ToProto(const ArtifactInfo& info) {
  v1::ArtifactInfo message;
  message.set_format(ToProto(info.format));
  message.set_name(info.name);
  message.set_size_bytes(info.size_bytes);
  message.set_sha256(info.sha256);
  message.set_media_type(std::string(ArtifactMediaType(info.format)));
  return message;
}

v1::DenoiseResponse ToProto(DenoiseResult&& result) {
  v1::DenoiseResponse message;
  *message.mutable_result() = ToProto(std::move(result.tensor));
  *message.mutable_receipt() = ToProto(result.receipt);
  message.set_queue_seconds(result.queue_seconds);
  message.set_forward_seconds(result.forward_seconds);
  return message;
}

v1::Model ToProto(const ModelInfo& model) {
  v1::Model message;
  message.set_name(model.name);
  message.set_pipeline(model.pipeline);
  message.set_description(model.description);
  message.set_device(model.device);
  message.set_dtype(model.dtype);
  message.set_weights_digest(model.weights_digest);
  message.set_model_digest(model.model_digest);
  for (const LinearNumerics one : model.linear) {
    message.add_linear(std::string(LinearNumericsName(one)));
  }
  message.set_is_default(model.is_default);
  message.set_transformer_parameters(model.transformer_parameters);
  message.set_num_layers(model.num_layers);
  message.set_num_heads(model.num_heads);
  message.set_head_size(model.head_size);
  message.set_has_gate(model.has_gate);
  message.set_scheduler(model.scheduler);
  *message.mutable_defaults() = ToProto(model.defaults);
  message.set_default_prompt(model.default_prompt);
  return message;
}

v1::FailedModel ToProto(const FailedModel& model) {
  v1::FailedModel message;
  message.set_name(model.name);
  message.set_reason(model.reason);
  message.set_message(model.message);
  return message;
}

v1::LoadModelResponse ToProto(const ModelLoaded& loaded) {
  v1::LoadModelResponse message;
  *message.mutable_model() = ToProto(loaded.model);
  message.set_unchanged(loaded.unchanged);
  message.set_previous_model_digest(loaded.previous_digest);
  message.set_on_previous(loaded.on_previous);
  message.set_seconds(loaded.seconds);
  return message;
}

v1::UnloadModelResponse ToProto(const ModelUnloaded& unloaded) {
  v1::UnloadModelResponse message;
  message.set_ended_jobs(unloaded.ended_jobs);
  message.set_ended_sessions(unloaded.ended_sessions);
  return message;
}

ModelChange FromProto(const v1::LoadModelRequest& message, const std::string& peer) {
  return {message.name(), false, peer, CheckedReason(message.reason())};
}

ModelChange FromProto(const v1::UnloadModelRequest& message, const std::string& peer) {
  return {message.name(), message.force(), peer, CheckedReason(message.reason())};
}

}  // namespace denoised
