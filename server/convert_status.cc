#include "server/convert_status.h"

#include <google/protobuf/util/time_util.h>

#include <array>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "runtime/cut_text.h"

namespace denoised {
namespace {

using google::protobuf::util::TimeUtil;

// The message crosses twice (grpc-message, percent-encoded, and the details, in base64); together
// they must stay below 8 KiB even where every byte triples.
constexpr size_t kMaxMessageBytes = 1600;
constexpr size_t kMaxDescriptionBytes = 300;
// A message that has details beside it, and these.
constexpr size_t kMaxMessageBytesBesideDetails = 900;
constexpr size_t kMaxDetailsBytes = 1800;

google::rpc::ErrorInfo InfoOf(const JobError& error) {
  google::rpc::ErrorInfo info;
  info.set_reason(error.reason);
  info.set_domain("denoised");
  auto& metadata = *info.mutable_metadata();
  if (!error.field.empty()) metadata["field"] = CutText(error.field, 128);
  if (!error.details.empty()) metadata["explanation"] = CutText(error.details, kMaxDetailsBytes);
  return info;
}

void AddDetails(const JobError& error, google::rpc::Status* status) {
  if (!error.field.empty() && error.code == StatusCode::kInvalidArgument) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(CutText(error.field, 128));
    violation->set_description(CutText(error.message, kMaxDescriptionBytes));
    status->add_details()->PackFrom(bad_request);
  }
  if (!error.reason.empty()) status->add_details()->PackFrom(InfoOf(error));
  if (error.retry_after) {
    google::rpc::RetryInfo retry;
    *retry.mutable_retry_delay() = TimeUtil::MillisecondsToDuration(error.retry_after->count());
    status->add_details()->PackFrom(retry);
  }
}

}  // namespace

grpc::Status ToStatus(const Error& error) { return ToStatus(ToJobError(error)); }

grpc::Status ToStatus(const JobError& error) {
  const size_t room = error.details.empty() ? kMaxMessageBytes : kMaxMessageBytesBesideDetails;
  const std::string message = CutText(error.message, room);
  google::rpc::Status status;
  status.set_code(static_cast<int>(error.code));
  status.set_message(message);
  AddDetails(error, &status);
  return grpc::Status(static_cast<grpc::StatusCode>(error.code), message,
                      status.SerializeAsString());
}

std::optional<std::chrono::milliseconds> RetryDelayOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& detail : details.details()) {
    google::rpc::RetryInfo retry;
    if (!detail.UnpackTo(&retry)) continue;
    return std::chrono::milliseconds(TimeUtil::DurationToMilliseconds(retry.retry_delay()));
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
