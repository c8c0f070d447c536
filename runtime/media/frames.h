// What the encoders share: the check of their input. Torch-free.
#ifndef DENOISED_RUNTIME_MEDIA_FRAMES_H_
#define DENOISED_RUNTIME_MEDIA_FRAMES_H_

#include <string>

#include "runtime/media/video_writer.h"

namespace denoised {

// INVALID_ARGUMENT unless sizes are 1 to `max_side`, fps is 1 to 1000 and the bytes are as many as
// the sizes say. `format` is for the message.
void CheckFrames(const VideoFrames& video, int64_t max_side, const std::string& format);

// The first byte of a frame.
inline const uint8_t* FrameData(const VideoFrames& video, int64_t frame) {
  return video.rgb.data() + frame * video.height * video.width * 3;
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEDIA_FRAMES_H_
