#include "backends/error.h"
#include "runtime/media/video_writer.h"

namespace denoised {

std::optional<std::string> WhyNoMp4() {
  return ".mp4: this build has no libav. Install libavcodec-dev and libavformat-dev and configure "
         "with -DDENOISED_LIBAV=ON, or ask for .gif, .png or .npy";
}

std::string EncodeMp4(const VideoFrames&) {
  throw Error(StatusCode::kUnimplemented, *WhyNoMp4(), "", "NO_LIBAV");
}

}  // namespace denoised
