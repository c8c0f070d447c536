// From frames or latents to the bytes of a file. Torch-free.
#ifndef DENOISED_RUNTIME_ARTIFACTS_H_
#define DENOISED_RUNTIME_ARTIFACTS_H_

#include <string>

#include "runtime/job.h"
#include "runtime/media/video_writer.h"

namespace denoised {

// Throws where this build or the format cannot take frames of this size: INVALID_ARGUMENT (field
// "formats") or FAILED_PRECONDITION saying how to get the encoder.
void CheckArtifact(ArtifactFormat format, int64_t height, int64_t width);

// mp4, gif, png (contact sheet), npy: from `frames`; safetensors: `latents` under the name
// "latents".
std::string EncodeArtifact(ArtifactFormat format, const VideoFrames& frames,
                           const HostTensor& latents);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ARTIFACTS_H_
