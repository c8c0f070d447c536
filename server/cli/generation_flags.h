// The flags that describe a generation, shared by generate, submit and run.
#ifndef DENOISED_SERVER_CLI_GENERATION_FLAGS_H_
#define DENOISED_SERVER_CLI_GENERATION_FLAGS_H_

#include <optional>
#include <string>
#include <vector>

#include "denoised/v1/generation.pb.h"
#include "server/flags.h"

namespace denoised::cli {

// `request` outlives the flags.
std::vector<Flag> GenerationFlags(v1::GenerationRequest* request);

// The flag that sets a request's field ("num_frames" is set by "frames"); "" where there is none or
// it has the field's own name.
std::string FlagOfField(const std::string& field);

// --output and --format: where a result goes, and as what.
struct OutputChoice {
  std::string path;
  std::optional<v1::ArtifactFormat> format;
};
std::vector<Flag> OutputFlags(OutputChoice* choice);

// The format that was asked for: --format, else by the ending of the path. Unspecified for a path
// that has none because it is no file (-, a device, a pipe). Throws UsageError where the path is
// missing, its ending is no format, or it says another one than --format.
v1::ArtifactFormat FormatOf(const OutputChoice& choice);

// "mp4" or "MP4"; throws UsageError that names the flag and lists the formats.
v1::ArtifactFormat ParseFormat(const std::string& flag, const std::string& name);
std::string FormatName(v1::ArtifactFormat format);  // "mp4"

// --formats.
Flag FormatsFlag(v1::GenerationRequest* request);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_GENERATION_FLAGS_H_
