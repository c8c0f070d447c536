// Following a job on a server from outside.
#ifndef DENOISED_SERVER_CLI_WATCH_JOB_H_
#define DENOISED_SERVER_CLI_WATCH_JOB_H_

#include <memory>
#include <string>

#include "denoised/v1/generation.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/patience.h"
#include "server/cli/preview_file.h"

namespace denoised::cli {

// Watches until the job's end, and shows it on the way. Where the server goes away it is waited
// for, and the job is picked up where it was left. The last state; throws CommandError where the
// patience ends first.
v1::Job WatchToEnd(const std::unique_ptr<v1::GenerationService::Stub>& stub,
                   const CommonOptions& options, const std::string& job_id,
                   const PreviewFile& preview, Patience patience);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_WATCH_JOB_H_
