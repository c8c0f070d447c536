#include "server/convert.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <array>
#include <utility>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace denoised {
namespace {

// In JobState's order.
constexpr std::array<v1::JobState, 6> kStates = {v1::QUEUED,    v1::RUNNING, v1::SUSPENDED,
                                                 v1::SUCCEEDED, v1::FAILED,  v1::CANCELLED};

using google::protobuf::util::TimeUtil;
using std::chrono::duration_cast;
using std::chrono::milliseconds;

constexpr int kMaxParameterDepth = 16;
constexpr size_t kMaxParameterBytes = 64 << 10;
// The message crosses twice (grpc-message, percent-encoded, and the details, in base64); together
// they must stay below 8 KiB even where every byte triples.
constexpr size_t kMaxMessageBytes = 1600;
constexpr size_t kMaxDescriptionBytes = 300;

// ---- requests

DType DTypeFromProto(const std::string& name, const std::string& field) {
  constexpr std::array kAll = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64,
                               DType::kInt64,   DType::kInt32,    DType::kUInt8};
  std::string names;
  for (DType dtype : kAll) {
    if (DTypeName(dtype) == name) return dtype;
    names += (names.empty() ? "" : ", ") + std::string(DTypeName(dtype));
  }
  throw InvalidField(field + ".dtype",
                     "unknown dtype '" + name.substr(0, 64) + "'; one of " + names);
}

int DepthOf(const google::protobuf::Value& value);

int DepthOf(const google::protobuf::Struct& fields) {
  int deepest = 0;
  for (const auto& [key, value] : fields.fields()) deepest = std::max(deepest, DepthOf(value));
  return 1 + deepest;
}

int DepthOf(const google::protobuf::Value& value) {
  if (value.has_struct_value()) return DepthOf(value.struct_value());
  if (!value.has_list_value()) return 0;
  int deepest = 0;
  for (const auto& item : value.list_value().values()) deepest = std::max(deepest, DepthOf(item));
  return 1 + deepest;
}

// Canonical parameters as the backends write them.
google::protobuf::Struct ParametersToProto(const std::string& json) {
  google::protobuf::Struct parameters;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &parameters);
  if (!status.ok()) throw Error(StatusCode::kInternal, "parameters are not JSON: " + json);
  return parameters;
}

SelectionMode ModeFromProto(v1::SelectionPolicy policy) {
  switch (policy) {
    case v1::SELECTION_POLICY_UNSPECIFIED:
    case v1::PREFER:
      return SelectionMode::kPrefer;
    case v1::STRICT:
      return SelectionMode::kStrict;
    default:
      throw InvalidField("attention.policy",
                         "PREFER or STRICT, got number " + std::to_string(policy));
  }
}

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

// ---- replies

google::protobuf::Duration DurationToProto(double seconds) {
  return TimeUtil::NanosecondsToDuration(static_cast<int64_t>(std::max(0.0, seconds) * 1e9));
}

google::protobuf::Timestamp TimeToProto(std::chrono::system_clock::time_point time) {
  return TimeUtil::MillisecondsToTimestamp(
      duration_cast<milliseconds>(time.time_since_epoch()).count());
}

void FillRefusals(const std::vector<Refusal>& refusals,
                  google::protobuf::RepeatedPtrField<v1::Refusal>* out) {
  for (const Refusal& refusal : refusals) {
    v1::Refusal* message = out->Add();
    message->set_source(std::string(SelectionSourceName(refusal.source)));
    message->set_backend(std::string(AttnBackendName(refusal.backend)));
    message->set_reason(refusal.reason);
  }
}

v1::ReceiptEntry EntryToProto(const ReceiptEntry& entry) {
  v1::ReceiptEntry message;
  message.set_role(std::string(AttentionRoleName(entry.role)));
  message.set_first_step(entry.first_step);
  message.set_last_step(entry.last_step);
  if (entry.asked) message.set_asked(std::string(AttnBackendName(*entry.asked)));
  message.set_ran(std::string(AttnBackendName(entry.ran)));
  message.set_source(std::string(SelectionSourceName(entry.selection.granted.source)));
  message.set_reason(Reason(entry));
  FillRefusals(entry.selection.refusals, message.mutable_refusals());
  message.set_lease_id(entry.selection.granted.lease_id);
  message.set_calls(entry.calls);
  if (entry.seconds) message.set_seconds(*entry.seconds);
  if (!entry.parameters.empty())
    *message.mutable_parameters() = ParametersToProto(entry.parameters);
  return message;
}

v1::AttentionSpec SpecToProto(const AttentionSpec& spec) {
  v1::AttentionSpec message;
  message.set_num_heads(spec.num_heads);
  message.set_head_size(spec.head_size);
  message.set_dtype(std::string(DTypeName(spec.dtype)));
  message.set_q_len(spec.q_len);
  message.set_kv_len(spec.kv_len);
  for (int64_t size : spec.grid) message.add_grid(size);
  message.set_causal(spec.causal);
  message.set_has_mask(spec.has_mask);
  message.set_has_gate(spec.has_gate);
  for (AttnBackend backend : spec.supported) {
    message.add_supported(std::string(AttnBackendName(backend)));
  }
  return message;
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

// ---- statuses

// At most `limit` bytes, never in the middle of a UTF-8 sequence.
std::string Cut(const std::string& text, size_t limit) {
  if (text.size() <= limit) return text;
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

void AddDetails(const JobError& error, google::rpc::Status* status) {
  if (!error.field.empty() && error.code == StatusCode::kInvalidArgument) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(Cut(error.field, 128));
    violation->set_description(Cut(error.message, kMaxDescriptionBytes));
    status->add_details()->PackFrom(bad_request);
  }
  if (!error.reason.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(error.reason);
    info.set_domain("denoised");
    if (!error.field.empty()) (*info.mutable_metadata())["field"] = Cut(error.field, 128);
    status->add_details()->PackFrom(info);
  }
  if (error.retry_after) {
    google::rpc::RetryInfo retry;
    *retry.mutable_retry_delay() = TimeUtil::MillisecondsToDuration(error.retry_after->count());
    status->add_details()->PackFrom(retry);
  }
}

PreviewOptions PreviewFromProto(const v1::PreviewOptions& message) {
  PreviewOptions options;
  if (message.has_every_steps()) options.every_steps = message.every_steps();
  if (message.has_max_side()) options.max_side = message.max_side();
  return options;
}

}  // namespace

HostTensor FromProto(v1::Tensor&& message, const std::string& field) {
  HostTensor tensor;
  tensor.dtype = DTypeFromProto(message.dtype(), field);
  tensor.shape.assign(message.shape().begin(), message.shape().end());
  tensor.data = std::move(*message.mutable_data());
  CheckHostTensor(tensor, field);
  return tensor;
}

AttentionOptions FromProto(const v1::AttentionOptions& message) {
  AttentionOptions options;
  if (message.has_backend()) {
    options.backend = CoerceAttnBackend(message.backend(), "attention.backend");
  }
  if (message.has_policy()) options.mode = ModeFromProto(message.policy());
  if (message.has_parameters()) {
    options.parameters_json = FromProto(message.parameters(), "attention.parameters");
  }
  return options;
}

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
  GenerationRequest request;
  request.model = message.model();
  request.prompt = message.prompt();
  if (message.has_negative_prompt()) request.negative_prompt = message.negative_prompt();
  if (message.has_seed()) request.seed = message.seed();
  if (message.has_height()) request.height = message.height();
  if (message.has_width()) request.width = message.width();
  if (message.has_num_frames()) request.num_frames = message.num_frames();
  if (message.has_fps()) request.fps = message.fps();
  if (message.has_num_inference_steps()) {
    request.num_inference_steps = message.num_inference_steps();
  }
  if (message.has_guidance_scale()) request.guidance_scale = message.guidance_scale();
  if (message.has_flow_shift()) request.flow_shift = message.flow_shift();
  if (message.has_max_sequence_length()) {
    request.max_sequence_length = message.max_sequence_length();
  }
  request.attention = FromProto(message.attention());
  request.numerics = FromProto(message.numerics());
  if (message.has_latents()) {
    request.latents = FromProto(std::move(*message.mutable_latents()), "latents");
  }
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

ExplainQuery FromProto(const v1::ExplainSelectionRequest& message) {
  ExplainQuery query;
  query.model = message.model();
  if (message.has_height()) query.height = message.height();
  if (message.has_width()) query.width = message.width();
  if (message.has_num_frames()) query.num_frames = message.num_frames();
  query.attention = FromProto(message.attention());
  return query;
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

std::string FromProto(const google::protobuf::Struct& parameters, const std::string& field) {
  if (DepthOf(parameters) > kMaxParameterDepth) {
    throw InvalidField(field, "at most 16 levels deep");
  }
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(parameters, &json).ok()) {
    throw InvalidField(field, "every value must be finite and set");
  }
  if (json.size() > kMaxParameterBytes) {
    throw InvalidField(field, "at most 65536 bytes as JSON, got " + std::to_string(json.size()));
  }
  return json;
}

milliseconds FromProto(const google::protobuf::Duration& duration, const std::string& field) {
  constexpr int64_t kTenYears = int64_t{10} * 366 * 24 * 3600;
  const bool fits = duration.seconds() >= 0 && duration.seconds() <= kTenYears &&
                    duration.nanos() >= 0 && duration.nanos() < 1000000000;
  if (!fits || (duration.seconds() == 0 && duration.nanos() == 0)) {
    throw InvalidField(field, "longer than 0 and at most ten years, got " +
                                  std::to_string(duration.seconds()) + " s and " +
                                  std::to_string(duration.nanos()) + " ns");
  }
  // Rounded up: a wish for a nanosecond is not a wish for nothing.
  return milliseconds(duration.seconds() * 1000 + (duration.nanos() + 999999) / 1000000);
}

std::optional<std::chrono::steady_clock::time_point> SteadyDeadline(
    std::chrono::system_clock::time_point deadline) {
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  const auto left = deadline - std::chrono::system_clock::now();
  // A client may send an absurdly far deadline; beyond this it is none.
  if (left > std::chrono::hours(24 * 365)) return std::nullopt;
  return std::chrono::steady_clock::now() +
         duration_cast<std::chrono::steady_clock::duration>(left);
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

v1::Preview ToProto(const JobPreview& preview) {
  v1::Preview message;
  message.set_step(preview.step);
  message.set_png(preview.png);
  return message;
}

v1::Receipt ToProto(const Receipt& receipt) {
  v1::Receipt message;
  for (const ReceiptEntry& entry : receipt.entries) *message.add_entries() = EntryToProto(entry);
  message.set_weights_digest(receipt.weights_digest);
  message.set_model_digest(receipt.model_digest);
  message.set_linear(receipt.linear);
  message.set_device(receipt.device);
  message.set_dtype(receipt.dtype);
  message.set_version(receipt.version);
  message.set_torch_version(receipt.torch_version);
  message.set_fingerprint(receipt.fingerprint);
  for (const std::string& note : receipt.notes) message.add_notes(note);
  message.set_kernels(receipt.kernels);
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

v1::Tensor ToProto(HostTensor&& tensor) {
  v1::Tensor message;
  message.set_dtype(std::string(DTypeName(tensor.dtype)));
  message.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  message.set_data(std::move(tensor.data));
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

v1::Lease ToProto(const Lease& force) {
  v1::Lease message;
  message.set_id(force.id);
  message.set_backend(std::string(AttnBackendName(force.backend)));
  message.set_scope(ToText(force.scope));
  message.set_reason(force.reason);
  message.set_holder(force.holder);
  *message.mutable_created_at() = TimeToProto(force.created_at);
  if (force.ends_at) {
    const std::chrono::duration<double> left = *force.ends_at - std::chrono::steady_clock::now();
    *message.mutable_remaining() = DurationToProto(left.count());
  }
  if (!force.parameters.empty())
    *message.mutable_parameters() = ParametersToProto(force.parameters);
  return message;
}

v1::Backend ToProto(const BackendInfo& backend) {
  v1::Backend message;
  message.set_name(std::string(AttnBackendName(backend.backend)));
  message.set_summary(backend.summary);
  message.set_automatic(backend.automatic);
  message.set_usable(!backend.why_not.has_value());
  message.set_why_not(backend.why_not.value_or(""));
  return message;
}

v1::RoleExplanation ToProto(const Explanation& explanation) {
  v1::RoleExplanation message;
  message.set_role(std::string(AttentionRoleName(explanation.role)));
  *message.mutable_spec() = SpecToProto(explanation.spec);
  if (explanation.error) {
    message.set_error(explanation.error->message);
  } else {
    const Wish& granted = explanation.selection.granted;
    message.set_would_run(std::string(AttnBackendName(granted.backend)));
    message.set_source(std::string(SelectionSourceName(granted.source)));
    message.set_reason(explanation.selection.Reason());
    message.set_lease_id(granted.lease_id);
    if (!granted.parameters.empty()) {
      *message.mutable_parameters() = ParametersToProto(granted.parameters);
    }
  }
  FillRefusals(explanation.selection.refusals, message.mutable_refusals());
  for (const Explanation::Candidate& candidate : explanation.candidates) {
    v1::BackendCandidate* row = message.add_candidates();
    row->set_backend(std::string(AttnBackendName(candidate.backend)));
    row->set_listed(candidate.listed);
    row->set_why_not(candidate.why_not.value_or(""));
  }
  return message;
}

grpc::Status ToStatus(const Error& error) { return ToStatus(ToJobError(error)); }

grpc::Status ToStatus(const JobError& error) {
  const std::string message = Cut(error.message, kMaxMessageBytes);
  google::rpc::Status status;
  status.set_code(static_cast<int>(error.code));
  status.set_message(message);
  AddDetails(error, &status);
  return grpc::Status(static_cast<grpc::StatusCode>(error.code), message,
                      status.SerializeAsString());
}

std::optional<milliseconds> RetryDelayOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& detail : details.details()) {
    google::rpc::RetryInfo retry;
    if (!detail.UnpackTo(&retry)) continue;
    return milliseconds(TimeUtil::DurationToMilliseconds(retry.retry_delay()));
  }
  return std::nullopt;
}

std::string_view StatusCodeName(grpc::StatusCode code) {
  constexpr std::array<std::string_view, 17> kNames = {
      "OK",
      "CANCELLED",
      "UNKNOWN",
      "INVALID_ARGUMENT",
      "DEADLINE_EXCEEDED",
      "NOT_FOUND",
      "ALREADY_EXISTS",
      "PERMISSION_DENIED",
      "RESOURCE_EXHAUSTED",
      "FAILED_PRECONDITION",
      "ABORTED",
      "OUT_OF_RANGE",
      "UNIMPLEMENTED",
      "INTERNAL",
      "UNAVAILABLE",
      "DATA_LOSS",
      "UNAUTHENTICATED",
  };
  const auto index = static_cast<size_t>(code);
  return index < kNames.size() ? kNames[index] : "UNKNOWN";
}

}  // namespace denoised
