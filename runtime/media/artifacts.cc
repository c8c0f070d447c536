#include "runtime/media/artifacts.h"

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

std::optional<std::string> WhyNotWritten(ArtifactFormat format) {
  return format == ArtifactFormat::kMp4 ? WhyNoMp4() : std::nullopt;
}

ArtifactBytes EstimateArtifact(ArtifactFormat format, int64_t frames, int64_t height, int64_t width,
                               int64_t latents) {
  const int64_t picture = height * width, video = frames * picture;
  switch (format) {
    case ArtifactFormat::kMp4: {
      // x264 looks ahead some 60 frames, each 1.5 bytes a pixel with its border and a half-size
      // copy.
      const int64_t held = std::min<int64_t>(frames, 60) + 20;
      return {2 * video, held * (height + 96) * (width + 96) * 5 / 2};
    }
    case ArtifactFormat::kGif:
      return {3 * video, 64 * picture + (int64_t{8} << 20)};
    case ArtifactFormat::kPng:
      return {6 * video, 4 * video};
    case ArtifactFormat::kNpy:
      return {12 * video, 0};
    case ArtifactFormat::kSafetensors:
      return {2 * latents, 2 * latents};
  }
  return {};
}

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
