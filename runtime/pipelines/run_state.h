// A job between two of its steps, as bytes: a safetensors file whose metadata say what it is, with
// a digest over all of it.
#ifndef DENOISED_RUNTIME_PIPELINES_RUN_STATE_H_
#define DENOISED_RUNTIME_PIPELINES_RUN_STATE_H_

#include <cstdint>
#include <map>
#include <string>

#include "runtime/job.h"
#include "runtime/pipelines/pipeline.h"

namespace denoised {

struct RunState {
  std::string request;     // RequestDigest
  std::string embeddings;  // SHA-256 over those of all prompts; "" where none was encoded yet
  int64_t step = 0;        // the next one
  HostTensor latents;
  std::string solver;                         // whose history it is
  std::map<std::string, HostTensor> history;  // of the solver, by its own names
};

// SHA-256 over all of a request that its latents depend on.
std::string RequestDigest(const RunRequest& request);

std::string SerializeRunState(const RunState& state);
// Throws INVALID_ARGUMENT with field "saved" where the bytes are not what SerializeRunState gave.
RunState ParseRunState(const std::string& bytes);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_RUN_STATE_H_
