// The only place that maps: messages of proto/ <-> plain structs of runtime/, and Error <-> status.
//
// Stateless; any thread. From* functions throw Error (INVALID_ARGUMENT, field named) for what
// cannot be said in a plain struct: unknown names, tensors whose bytes do not fit, durations out of
// range. What a value may be for a given model is the engine's business.
#ifndef DENOISED_SERVER_CONVERT_H_
#define DENOISED_SERVER_CONVERT_H_

#include <grpcpp/support/status.h>

#include <chrono>
#include <optional>
#include <string>

#include "denoised/v1/admin.pb.h"
#include "denoised/v1/denoise.pb.h"
#include "denoised/v1/generation.pb.h"
#include "denoised/v1/model.pb.h"
#include "runtime/engine.h"

namespace denoised {

// Requests. Those that carry tensors are consumed, so that their bytes are not copied.
GenerationRequest FromProto(v1::GenerationRequest&& message);
DenoiseRequest FromProto(v1::DenoiseRequest&& message);
ExplainQuery FromProto(const v1::ExplainSelectionRequest& message);
// Values inside them; a tensor's `field` names it in errors.
HostTensor FromProto(v1::Tensor&& message, const std::string& field);
AttentionOptions FromProto(const v1::AttentionOptions& message);
NumericsOptions FromProto(const v1::NumericsOptions& message);
Priority FromProto(v1::Priority priority);
// Empty = the first format of the job.
std::optional<ArtifactFormat> FromProto(v1::ArtifactFormat format);
// Empty = all states.
std::optional<JobState> FromProto(v1::JobState state);
// A backend's parameters as JSON; throws where they are too deep or too long.
std::string FromProto(const google::protobuf::Struct& parameters, const std::string& field);
// Throws where the duration is malformed, or not above 0 and at most ten years.
std::chrono::milliseconds FromProto(const google::protobuf::Duration& duration,
                                    const std::string& field);

// Moment of a call's deadline on the steady clock; empty where the call has none.
std::optional<std::chrono::steady_clock::time_point> SteadyDeadline(
    std::chrono::system_clock::time_point deadline);

// Replies. A job's is without its preview, which not every reply carries.
v1::Job ToProto(const JobSnapshot& job);
v1::Preview ToProto(const JobPreview& preview);
v1::Receipt ToProto(const Receipt& receipt);
v1::GenerationParameters ToProto(const ResolvedParameters& parameters);
v1::JobError ToProto(const JobError& error);
v1::Tensor ToProto(HostTensor&& tensor);
v1::ArtifactFormat ToProto(ArtifactFormat format);
v1::ArtifactInfo ToProto(const ArtifactInfo& info);
v1::DenoiseResponse ToProto(DenoiseResult&& result);
v1::Model ToProto(const ModelInfo& model);
v1::FailedModel ToProto(const FailedModel& model);
v1::Lease ToProto(const Lease& lease);
v1::Backend ToProto(const BackendInfo& backend);
v1::RoleExplanation ToProto(const Explanation& explanation);

// Statuses carry google.rpc details: BadRequest for a field, ErrorInfo for a reason, RetryInfo
// where it is known when a retry makes sense. Texts are cut so that the trailers stay below gRPC's
// 8 KiB.
grpc::Status ToStatus(const Error& error);
grpc::Status ToStatus(const JobError& error);
// What a status says in its RetryInfo.
std::optional<std::chrono::milliseconds> RetryDelayOf(const grpc::Status& status);
// "INVALID_ARGUMENT", ...
std::string_view StatusCodeName(grpc::StatusCode code);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_H_
