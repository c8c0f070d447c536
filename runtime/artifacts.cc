#include "runtime/artifacts.h"

#include "runtime/loaders/safetensors.h"

namespace denoised {
namespace {

std::string EncodeLatents(const HostTensor& latents) {
  if (latents.dtype != DType::kFloat32) {
    throw Error(StatusCode::kInternal, "latents are expected in float32");
  }
  return SerializeSafetensors({{"latents", RawTensor{"F32", latents.shape, latents.data}}});
}

}  // namespace

std::string EncodeArtifact(ArtifactFormat format, const DecodedVideo& video,
                           const HostTensor& latents) {
  switch (format) {
    case ArtifactFormat::kMp4:
      return EncodeMp4(video.frames);
    case ArtifactFormat::kGif:
      return EncodeGif(video.frames);
    case ArtifactFormat::kPng:
      return EncodePngSheet(video.frames);
    case ArtifactFormat::kNpy:
      return EncodeNpy(video.values,
                       {video.frames.frames, video.frames.height, video.frames.width, 3});
    case ArtifactFormat::kSafetensors:
      return EncodeLatents(latents);
  }
  throw Error(StatusCode::kInternal, "unknown artifact format");
}

}  // namespace denoised
