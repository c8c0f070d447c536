#include "runtime/store/job_row.h"

#include <algorithm>

#include "runtime/store/json_fields.h"
#include "runtime/store/moment_row.h"
#include "runtime/store/receipt_row.h"

namespace denoised {
namespace {

using stored::Dump;
using stored::FromName;
using stored::Json;
using stored::Put;
using stored::ReadMoment;
using stored::ReadWhole;
using stored::Take;
using stored::ToMicros;
using Moment = std::optional<std::chrono::system_clock::time_point>;

Json WriteParameters(const ResolvedParameters& p) {
  return {{"model", p.model},
          {"seed", p.seed},
          {"height", p.height},
          {"width", p.width},
          {"num_frames", p.num_frames},
          {"fps", p.fps},
          {"num_inference_steps", p.num_inference_steps},
          {"guidance_scale", p.guidance_scale},
          {"flow_shift", p.flow_shift},
          {"max_sequence_length", p.max_sequence_length},
          {"negative_prompt", p.negative_prompt},
          {"scheduler", p.scheduler},
          {"linear", LinearNumericsName(p.linear)}};
}

ResolvedParameters ReadParameters(const Json& json) {
  ResolvedParameters p;
  json.at("model").get_to(p.model);
  ReadWhole(json, "seed", &p.seed);
  ReadWhole(json, "height", &p.height);
  ReadWhole(json, "width", &p.width);
  ReadWhole(json, "num_frames", &p.num_frames);
  ReadWhole(json, "fps", &p.fps);
  ReadWhole(json, "num_inference_steps", &p.num_inference_steps);
  json.at("guidance_scale").get_to(p.guidance_scale);
  json.at("flow_shift").get_to(p.flow_shift);
  ReadWhole(json, "max_sequence_length", &p.max_sequence_length);
  json.at("negative_prompt").get_to(p.negative_prompt);
  json.at("scheduler").get_to(p.scheduler);
  p.linear =
      FromName(json.at("linear").get<std::string>(), LinearNumerics::kInt8, LinearNumericsName);
  return p;
}

Json WriteArtifacts(const std::vector<ArtifactInfo>& artifacts) {
  Json json = Json::array();
  for (const ArtifactInfo& info : artifacts) {
    json.push_back({{"format", ArtifactFormatName(info.format)},
                    {"name", info.name},
                    {"size_bytes", info.size_bytes},
                    {"sha256", info.sha256}});
  }
  return json;
}

std::vector<ArtifactInfo> ReadArtifacts(const Json& json) {
  std::vector<ArtifactInfo> artifacts;
  for (const Json& entry : json) {
    ArtifactInfo info;
    info.format = FromName(entry.at("format").get<std::string>(), ArtifactFormat::kSafetensors,
                           ArtifactFormatName);
    entry.at("name").get_to(info.name);
    ReadWhole(entry, "size_bytes", &info.size_bytes);
    entry.at("sha256").get_to(info.sha256);
    artifacts.push_back(std::move(info));
  }
  return artifacts;
}

Json WriteError(const JobError& error) {
  return {{"code", static_cast<int>(error.code)},
          {"message", error.message},
          {"field", error.field},
          {"reason", error.reason},
          {"details", error.details}};
}

JobError ReadError(const Json& json) {
  const int code = stored::Whole<int>(json.at("code"));
  if (code < 0 || code > static_cast<int>(StatusCode::kDataLoss)) {
    throw stored::Unreadable("no such status code");
  }
  return {static_cast<StatusCode>(code),
          json.at("message").get<std::string>(),
          json.at("field").get<std::string>(),
          json.at("reason").get<std::string>(),
          std::nullopt,
          json.value("details", "")};
}

void PutMoment(Json* json, const char* name, const Moment& moment) {
  if (moment) (*json)[name] = ToMicros(*moment);
}

void TakeMoment(const Json& json, const char* name, Moment* moment) {
  if (const auto found = json.find(name); found != json.end()) {
    *moment = ReadMoment(*found);
  }
}

void TakePast(const Json& json, const char* name, std::optional<PastMoment>* moment) {
  if (const auto found = json.find(name); found != json.end()) *moment = stored::ReadPast(*found);
}

Json WriteStages(const JobSnapshot& job) {
  Json json = Json::array();
  for (const auto& [stage, seconds] : job.stage_seconds) {
    json.push_back({JobStageName(stage), seconds});
  }
  return json;
}

Json WriteJob(const JobSnapshot& job) {
  Json json = {{"id", job.id},
               {"sequence", job.sequence},
               {"state", JobStateName(job.state)},
               {"stage", JobStageName(job.stage)},
               {"step", job.step},
               {"num_steps", job.num_steps},
               {"attempt", job.attempt},
               {"priority", PriorityName(job.priority)},
               {"tenant", job.tenant},
               {"prompt", job.prompt},
               {"parameters", WriteParameters(job.parameters)},
               {"created_at", ToMicros(job.created_at)},
               {"stage_seconds", WriteStages(job)},
               {"receipt", stored::WriteReceipt(job.receipt)},
               {"artifacts", WriteArtifacts(job.artifacts)}};
  if (job.asked) json["asked"] = JobStateName(*job.asked);
  Put(&json, "eta_seconds", job.eta_seconds);
  PutMoment(&json, "started_at", job.started_at);
  PutMoment(&json, "finished_at", job.finished_at);
  if (job.error) json["error"] = WriteError(*job.error);
  return json;
}

void ReadProgress(const Json& json, JobSnapshot* job) {
  job->state = FromName(json.at("state").get<std::string>(), JobState::kCancelled, JobStateName);
  job->stage = FromName(json.at("stage").get<std::string>(), JobStage::kEncode, JobStageName);
  ReadWhole(json, "sequence", &job->sequence);
  ReadWhole(json, "step", &job->step);
  ReadWhole(json, "num_steps", &job->num_steps);
  ReadWhole(json, "attempt", &job->attempt);
  if (const auto asked = json.find("asked"); asked != json.end()) {
    job->asked = FromName(asked->get<std::string>(), JobState::kCancelled, JobStateName);
  }
  Take(json, "eta_seconds", &job->eta_seconds);
  for (const Json& stage : json.at("stage_seconds")) {
    job->stage_seconds.emplace_back(
        FromName(stage.at(0).get<std::string>(), JobStage::kEncode, JobStageName),
        stage.at(1).get<double>());
  }
}

JobSnapshot ReadJob(const Json& json) {
  JobSnapshot job;
  json.at("id").get_to(job.id);
  if (!IsPlainId(job.id)) throw stored::Unreadable("its id is none");
  ReadProgress(json, &job);
  job.priority = FromName(json.at("priority").get<std::string>(), Priority::kUrgent, PriorityName);
  json.at("tenant").get_to(job.tenant);
  json.at("prompt").get_to(job.prompt);
  job.parameters = ReadParameters(json.at("parameters"));
  job.created_at = ReadMoment(json.at("created_at"));
  TakeMoment(json, "started_at", &job.started_at);
  TakeMoment(json, "finished_at", &job.finished_at);
  job.receipt = stored::ReadReceipt(json.at("receipt"));
  job.artifacts = ReadArtifacts(json.at("artifacts"));
  if (const auto error = json.find("error"); error != json.end()) job.error = ReadError(*error);
  return job;
}

}  // namespace

std::string WriteRow(const JobRow& row) {
  Json json = {{"job", WriteJob(row.job)},
               {"key", row.key},
               {"request_digest", row.request_digest},
               {"crashes", row.crashes}};
  if (row.accepted) json["accepted"] = stored::WritePast(*row.accepted);
  if (row.ended) json["ended"] = stored::WritePast(*row.ended);
  if (row.end_number > 0) json["end_number"] = row.end_number;
  return Dump(json);
}

JobRow ReadRow(uint64_t number, const std::string& text) {
  return stored::Parse(text, [number](const Json& json) {
    JobRow row;
    row.number = number;
    row.job = ReadJob(json.at("job"));
    json.at("key").get_to(row.key);
    json.at("request_digest").get_to(row.request_digest);
    ReadWhole(json, "crashes", &row.crashes);
    TakePast(json, "accepted", &row.accepted);
    TakePast(json, "ended", &row.ended);
    if (json.contains("end_number")) ReadWhole(json, "end_number", &row.end_number);
    return row;
  });
}

bool IsPlainId(const std::string& id) {
  return !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

}  // namespace denoised
