// Driver of media_parity_test.py: raw RGB bytes come in, the encoded file goes out.
//   media_main mp4|gif|png|npy FRAMES HEIGHT WIDTH FPS
// For npy the bytes are float32.
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <iterator>
#include <string>

#include "runtime/media/video_writer.h"

namespace {

std::string Encode(const std::string& format, const std::string& bytes, int64_t frames,
                   int64_t height, int64_t width, int fps) {
  if (format == "npy") {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return denoised::EncodeNpy(values, {frames, height, width, 3});
  }
  const denoised::VideoFrames video{frames, height, width, fps, {bytes.begin(), bytes.end()}};
  if (format == "mp4") return denoised::EncodeMp4(video);
  if (format == "gif") return denoised::EncodeGif(video);
  return denoised::EncodePngSheet(video);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fputs("usage: media_main mp4|gif|png|npy FRAMES HEIGHT WIDTH FPS\n", stderr);
    return 2;
  }
  try {
    const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
    std::cout << Encode(argv[1], bytes, std::stoll(argv[2]), std::stoll(argv[3]),
                        std::stoll(argv[4]), std::stoi(argv[5]));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "media_main: %s\n", error.what());
    return 1;
  }
}
