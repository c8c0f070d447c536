// Errors as statuses of gRPC. Stateless; any thread.
#ifndef DENOISED_SERVER_CONVERT_STATUS_H_
#define DENOISED_SERVER_CONVERT_STATUS_H_

#include <grpcpp/support/status.h>

#include <chrono>
#include <optional>
#include <string_view>

#include "runtime/job.h"

namespace denoised {

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

#endif  // DENOISED_SERVER_CONVERT_STATUS_H_
