#include "runtime/store/request_row.h"

#include <algorithm>

#include "runtime/loaders/attention_schedule.h"
#include "runtime/loaders/sha256.h"
#include "runtime/store/json_fields.h"
#include "runtime/store/moment_row.h"

namespace denoised {
namespace {

using stored::Dump;
using stored::FromName;
using stored::Json;
using stored::Put;
using stored::Take;

// Of what has passed long ago, or comes in a lifetime, no more is known: what is read can be
// written.
constexpr std::chrono::hours kLongAgo(-24), kInALifetime(24 * 365 * 50);

// Servers before this one kept a time of day.
std::chrono::steady_clock::time_point ReadDeadline(const Json& json, const ClockReading& now) {
  const std::chrono::microseconds left =
      json.is_object()
          ? stored::ReadLeft(json, now)
          : stored::ReadMicros(json) - std::chrono::microseconds(stored::ToMicros(now.wall));
  return now.steady + std::clamp<std::chrono::microseconds>(left, kLongAgo, kInALifetime);
}

Json WriteAttention(const AttentionOptions& options) {
  Json json = {{"strict", options.mode == SelectionMode::kStrict},
               {"parameters", options.parameters_json}};
  if (options.backend) json["backend"] = AttnBackendName(*options.backend);
  if (!options.schedule.empty()) json["schedule"] = WriteSchedule(options.schedule);
  return json;
}

std::vector<AttentionRule> ReadStoredSchedule(const Json& json) {
  try {
    return ReadSchedule(json, "attention.schedule");
  } catch (const Error& error) {
    throw stored::Unreadable(error.what());
  }
}

AttentionOptions ReadAttention(const Json& json) {
  AttentionOptions options;
  options.mode = json.at("strict").get<bool>() ? SelectionMode::kStrict : SelectionMode::kPrefer;
  options.parameters_json = json.at("parameters").get<std::string>();
  std::optional<std::string> backend;
  Take(json, "backend", &backend);
  if (backend) options.backend = FromName(*backend, AttnBackend::kNoAttention, AttnBackendName);
  if (const auto schedule = json.find("schedule"); schedule != json.end()) {
    options.schedule = ReadStoredSchedule(*schedule);
  }
  return options;
}

// All but the deadline, the key and the bytes of the tensor.
Json WriteContent(const GenerationRequest& request) {
  Json json = {{"model", request.model},
               {"prompt", request.prompt},
               {"attention", WriteAttention(request.attention)},
               {"best_effort_deadline", request.best_effort_deadline},
               {"priority", PriorityName(request.priority)},
               {"tenant", request.tenant}};
  if (request.pin_backends) json["pin_backends"] = true;
  Put(&json, "negative_prompt", request.negative_prompt);
  Put(&json, "seed", request.seed);
  Put(&json, "height", request.height);
  Put(&json, "width", request.width);
  Put(&json, "num_frames", request.num_frames);
  Put(&json, "fps", request.fps);
  Put(&json, "num_inference_steps", request.num_inference_steps);
  Put(&json, "guidance_scale", request.guidance_scale);
  Put(&json, "flow_shift", request.flow_shift);
  Put(&json, "max_sequence_length", request.max_sequence_length);
  if (request.numerics.linear) json["linear"] = LinearNumericsName(*request.numerics.linear);
  if (request.latents) {
    json["latents"] = {{"dtype", DTypeName(request.latents->dtype)},
                       {"shape", request.latents->shape}};
  }
  json["formats"] = Json::array();
  for (ArtifactFormat format : request.formats) {
    json["formats"].push_back(ArtifactFormatName(format));
  }
  if (request.preview) {
    json["preview"] = {{"every_steps", request.preview->every_steps},
                       {"max_side", request.preview->max_side}};
  }
  return json;
}

HostTensor ReadLatents(const Json& json, const std::string& bytes) {
  HostTensor tensor;
  tensor.dtype = FromName(json.at("dtype").get<std::string>(), DType::kUInt8, DTypeName);
  for (const Json& size : json.at("shape")) tensor.shape.push_back(stored::Whole<int64_t>(size));
  tensor.data = bytes;
  try {
    CheckHostTensor(tensor, "latents");
  } catch (const Error& error) {
    throw stored::Unreadable(error.what());
  }
  return tensor;
}

void ReadNumbers(const Json& json, GenerationRequest* request) {
  Take(json, "negative_prompt", &request->negative_prompt);
  Take(json, "seed", &request->seed);
  Take(json, "height", &request->height);
  Take(json, "width", &request->width);
  Take(json, "num_frames", &request->num_frames);
  Take(json, "fps", &request->fps);
  Take(json, "num_inference_steps", &request->num_inference_steps);
  Take(json, "guidance_scale", &request->guidance_scale);
  Take(json, "flow_shift", &request->flow_shift);
  Take(json, "max_sequence_length", &request->max_sequence_length);
}

void ReadChoices(const Json& json, GenerationRequest* request) {
  std::optional<std::string> linear;
  Take(json, "linear", &linear);
  if (linear) {
    request->numerics.linear = LinearNumericsFromName(*linear);
    if (!request->numerics.linear) throw stored::Unreadable("no such numerics: " + *linear);
  }
  for (const Json& format : json.at("formats")) {
    request->formats.push_back(
        FromName(format.get<std::string>(), ArtifactFormat::kSafetensors, ArtifactFormatName));
  }
  if (const auto preview = json.find("preview"); preview != json.end()) {
    request->preview = {stored::Whole<int64_t>(preview->at("every_steps")),
                        stored::Whole<int64_t>(preview->at("max_side"))};
  }
}

}  // namespace

RequestRow WriteRequest(const GenerationRequest& request, const ClockReading& now) {
  Json json = WriteContent(request);
  if (request.deadline) json["deadline"] = stored::WriteEnd(*request.deadline, now);
  if (request.belongs_to_call) json["belongs_to_call"] = true;
  return {Dump(json), request.latents ? request.latents->data : ""};
}

GenerationRequest ReadRequest(const RequestRow& row, const ClockReading& now) {
  return stored::Parse(row.text, [&](const Json& json) {
    GenerationRequest request;
    request.model = json.at("model").get<std::string>();
    request.prompt = json.at("prompt").get<std::string>();
    request.attention = ReadAttention(json.at("attention"));
    request.best_effort_deadline = json.at("best_effort_deadline").get<bool>();
    request.priority =
        FromName(json.at("priority").get<std::string>(), Priority::kUrgent, PriorityName);
    request.tenant = json.at("tenant").get<std::string>();
    request.pin_backends = json.value("pin_backends", false);
    ReadNumbers(json, &request);
    ReadChoices(json, &request);
    if (const auto latents = json.find("latents"); latents != json.end()) {
      request.latents = ReadLatents(*latents, row.latents);
    }
    if (const auto deadline = json.find("deadline"); deadline != json.end()) {
      request.deadline = ReadDeadline(*deadline, now);
    }
    request.belongs_to_call = json.value("belongs_to_call", false);
    return request;
  });
}

std::string RequestDigest(const GenerationRequest& request) {
  Json json = WriteContent(request);
  // Keys in one order, whatever order they came in.
  const Json parameters = Json::parse(request.attention.parameters_json, nullptr, false);
  if (!parameters.is_discarded()) json["attention"]["parameters"] = Dump(parameters);
  json["has_deadline"] = request.deadline.has_value();
  Sha256 hash;
  hash.Update(Dump(json));  // keys in order, so canonical
  if (request.latents) hash.Update(request.latents->data);
  return ToHex(hash.Finish());
}

JobRow NewRow(const JobSnapshot& job, const GenerationRequest& request) {
  JobRow row;
  row.job = job;
  row.key = request.idempotency_key;
  if (!row.key.empty()) row.request_digest = RequestDigest(request);
  return row;
}

}  // namespace denoised
