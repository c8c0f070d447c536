// What a loaded model is, for people and for checks. Torch-free values.
#ifndef DENOISED_RUNTIME_MODEL_INFO_H_
#define DENOISED_RUNTIME_MODEL_INFO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/job.h"
#include "runtime/numerics.h"

namespace denoised {

struct ModelInfo {
  std::string name;      // folder name in the repository, or org/name of the Hugging Face cache
  std::string pipeline;  // "WanPipeline"
  std::string description;
  std::string device, dtype, vae_dtype;
  std::vector<LinearNumerics> linear;  // what a request may ask for; defaults.linear is one
  std::string folder;                  // that they were read from
  // Over the files that were read (loaders/manifest.h): the weight files', and all files'.
  std::string weights_digest, model_digest;
  int64_t weight_bytes = 0;  // that it holds since loading, about, by the files' headers
  bool is_default = false;   // told by whoever lists it: loading does not decide it
  int64_t transformer_parameters = 0, num_layers = 0, num_heads = 0, head_size = 0;
  bool has_gate = false;  // to_gate_compress weights for VIDEO_SPARSE_ATTN
  std::string scheduler;
  ResolvedParameters defaults;
  std::string default_prompt;  // "" where the model names none
};

// A folder of the repository that holds a model which could not be loaded, when it was tried last.
// All printable UTF-8.
struct FailedModel {
  std::string name;     // as ModelInfo::name, with what cannot be printed escaped
  std::string reason;   // an upper-case word of a closed set: Error::reason, else its code's name
  std::string message;  // names the file at fault
};

// What an operator wants done with a model.
struct ModelChange {
  std::string name;
  bool force = false;  // of an unload: its work ends
  std::string who, reason;
};

// A model that was read again.
struct ModelLoaded {
  ModelInfo model;              // that serves now
  std::string previous_digest;  // model_digest of the one that served; "" = none did
  bool unchanged = false;       // the files are those that serve: nothing was swapped
  int64_t on_previous = 0;      // jobs and sessions that had begun, and end with the previous one
  double seconds = 0;
};

// A model that serves no longer.
struct ModelUnloaded {
  int64_t ended_jobs = 0, ended_sessions = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODEL_INFO_H_
