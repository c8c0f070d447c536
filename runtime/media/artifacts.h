// From frames or latents to the bytes of a file. Torch-free.
#ifndef DENOISED_RUNTIME_MEDIA_ARTIFACTS_H_
#define DENOISED_RUNTIME_MEDIA_ARTIFACTS_H_

#include <optional>
#include <string>
#include <vector>

#include "runtime/job.h"
#include "runtime/media/video_writer.h"

namespace denoised {

// What a run ends in.
struct DecodedVideo {
  VideoFrames frames;
  std::vector<float> values;  // the same in [0, 1] before rounding; empty unless asked for
};

// mp4, gif, png (contact sheet), npy: from `video`; safetensors: `latents` under the name
// "latents".
std::string EncodeArtifact(ArtifactFormat format, const DecodedVideo& video,
                           const HostTensor& latents);

// Why this build cannot write the format; empty where it can.
std::optional<std::string> WhyNotWritten(ArtifactFormat format);

// Most bytes of such a file, and of what its encoder holds beside it. `latents` = bytes of them.
struct ArtifactBytes {
  int64_t file = 0, workspace = 0;
};
ArtifactBytes EstimateArtifact(ArtifactFormat format, int64_t frames, int64_t height, int64_t width,
                               int64_t latents);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEDIA_ARTIFACTS_H_
