// From frames or latents to the bytes of a file. Torch-free.
#ifndef DENOISED_RUNTIME_ARTIFACTS_H_
#define DENOISED_RUNTIME_ARTIFACTS_H_

#include <string>

#include "runtime/job.h"
#include "runtime/pipeline.h"

namespace denoised {

// mp4, gif, png (contact sheet), npy: from `video`; safetensors: `latents` under the name
// "latents".
std::string EncodeArtifact(ArtifactFormat format, const DecodedVideo& video,
                           const HostTensor& latents);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ARTIFACTS_H_
