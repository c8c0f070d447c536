// Job ids as people type them: the first digits, as many as tell one job from the others.
#ifndef DENOISED_SERVER_CLI_JOB_ID_H_
#define DENOISED_SERVER_CLI_JOB_ID_H_

#include <functional>
#include <string>

#include "denoised/v1/generation.pb.h"

namespace denoised::cli {

// Asks for one page of all jobs.
using ListPage = std::function<v1::ListJobsResponse(const std::string& page_token)>;

// The id that begins with `text`. A whole id, and what cannot be the beginning of one, is handed
// back as it is: the server judges it. Throws CommandError where no job begins like that or several
// do (it lists them), UsageError for "".
std::string ResolveJobId(const std::string& text, const ListPage& list);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_JOB_ID_H_
