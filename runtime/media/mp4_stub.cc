#include "backends/error.h"
#include "runtime/media/video_writer.h"

namespace denoised {

std::string EncodeMp4(const VideoFrames&) {
  throw Error(StatusCode::kUnimplemented,
              ".mp4: this build has no libav. Install libavcodec-dev and libavformat-dev and "
              "configure with -DDENOISED_LIBAV=ON, or ask for .gif, .png or .npy",
              "", "NO_LIBAV");
}

}  // namespace denoised
