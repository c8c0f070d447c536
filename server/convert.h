// The only place that maps: messages of proto/ <-> plain structs of runtime/, and Error <-> status.
// Here requests, jobs and models; values, attention, leases and statuses are in the files beside
// it.
//
// Stateless; any thread. From* functions throw Error (INVALID_ARGUMENT, field named) for what
// cannot be said in a plain struct: unknown names, tensors whose bytes do not fit, durations out of
// range. What a value may be for a given model is the engine's business.
#ifndef DENOISED_SERVER_CONVERT_H_
#define DENOISED_SERVER_CONVERT_H_

#include <optional>

#include "denoised/v1/denoise.pb.h"
#include "denoised/v1/generation.pb.h"
#include "denoised/v1/model.pb.h"
#include "runtime/engine.h"
#include "server/convert_attention.h"
#include "server/convert_status.h"
#include "server/convert_values.h"

namespace denoised {

// Requests. Those that carry tensors are consumed, so that their bytes are not copied.
GenerationRequest FromProto(v1::GenerationRequest&& message);
DenoiseRequest FromProto(v1::DenoiseRequest&& message);
NumericsOptions FromProto(const v1::NumericsOptions& message);
Priority FromProto(v1::Priority priority);
// Empty = the first format of the job.
std::optional<ArtifactFormat> FromProto(v1::ArtifactFormat format);
// Empty = all states.
std::optional<JobState> FromProto(v1::JobState state);

// Replies. A job's is without its preview, which not every reply carries.
v1::Job ToProto(const JobSnapshot& job);
v1::Preview ToProto(const JobPreview& preview);
v1::GenerationParameters ToProto(const ResolvedParameters& parameters);
v1::JobError ToProto(const JobError& error);
v1::ArtifactFormat ToProto(ArtifactFormat format);
v1::ArtifactInfo ToProto(const ArtifactInfo& info);
v1::DenoiseResponse ToProto(DenoiseResult&& result);
v1::Model ToProto(const ModelInfo& model);
v1::FailedModel ToProto(const FailedModel& model);
v1::LoadModelResponse ToProto(const ModelLoaded& loaded);
v1::UnloadModelResponse ToProto(const ModelUnloaded& unloaded);
ModelChange FromProto(const v1::LoadModelRequest& message, const std::string& peer);
ModelChange FromProto(const v1::UnloadModelRequest& message, const std::string& peer);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_H_
