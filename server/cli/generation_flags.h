// The flags that describe a generation, shared by generate, submit and run.
#ifndef DENOISED_SERVER_CLI_GENERATION_FLAGS_H_
#define DENOISED_SERVER_CLI_GENERATION_FLAGS_H_

#include <vector>

#include "denoised/v1/generation.pb.h"
#include "server/flags.h"

namespace denoised::cli {

// `request` outlives the flags.
std::vector<Flag> GenerationFlags(v1::GenerationRequest* request);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_GENERATION_FLAGS_H_
