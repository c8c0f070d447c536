#include "server/cli/watch_job.h"

#include <cstdio>
#include <string>
#include <thread>

#include "server/cli/connection.h"
#include "server/cli/output.h"
#include "server/cli/progress.h"
#include "server/cli/text.h"
#include "server/convert_status.h"

namespace denoised::cli {
namespace {

// Waits for the server to come back, and says so. False where it is not worth it.
bool AwaitServer(const grpc::Status& status, Patience* patience, Progress* progress) {
  const bool again = patience->waits();
  const auto pause = patience->PauseAfter(status);
  if (!pause) return false;
  progress->Finish();
  if (!again) {
    PrintLine("denoisectl: waiting for the server (" +
                  std::string(StatusCodeName(status.error_code())) + ": " + status.error_message() +
                  ")",
              stderr);
  }
  std::this_thread::sleep_for(*pause);
  return true;
}

}  // namespace

v1::Job WatchToEnd(const std::unique_ptr<v1::GenerationService::Stub>& stub,
                   const CommonOptions& options, const std::string& job_id,
                   const PreviewFile& preview, Patience patience) {
  Progress progress(/*quiet=*/options.json);
  v1::WatchJobRequest request;
  request.set_job_id(job_id);
  RequireUtf8(request);
  v1::Job last;
  for (;;) {
    grpc::ClientContext context;
    const auto reader = stub->WatchJob(&context, request);
    for (v1::Job job; reader->Read(&job);) {
      patience.Renew();
      preview.Take(&job);
      last = job;
      request.set_after_sequence(job.sequence());
      progress.Show(job);
      if (options.json) PrintJson(job);
    }
    const grpc::Status status = reader->Finish();
    // Where no server ever was, the address may be wrong.
    const bool known = request.after_sequence() > 0 || RetryDelayOf(status);
    if (known && AwaitServer(status, &patience, &progress)) continue;
    progress.Finish();
    CheckStatus(status, options.server);
    return last;
  }
}

}  // namespace denoised::cli
