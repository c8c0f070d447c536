#include "server/cli/generation_flags.h"

#include <google/protobuf/util/time_util.h>

#include <cstdint>
#include <string>

#include "server/cli/command.h"

namespace denoised::cli {
namespace {

// A whole number for `set`; what suits the model is the server's to say.
Flag Whole(const std::string& name, const std::string& help, std::function<void(int64_t)> set) {
  return {name, "N", "", help, SetInt(name, INT64_MIN, INT64_MAX, std::move(set))};
}

Flag Real(const std::string& name, const std::string& help, std::function<void(double)> set) {
  return {name, "X", "", help, SetDouble(name, std::move(set))};
}

}  // namespace

std::vector<Flag> GenerationFlags(v1::GenerationRequest* request) {
  std::vector<Flag> flags = {
      {"model", "NAME", "", "Model to use (denoisectl models); unset: the server's default.",
       [request](const std::string& name) { request->set_model(name); }},
      {"negative", "TEXT", "", "What to steer away from.",
       [request](const std::string& text) { request->set_negative_prompt(text); }},
      Whole("seed", "Of the noise; unset: drawn, and reported.",
            [request](int64_t n) { request->set_seed(n); }),
      Whole("steps", "Denoising steps.",
            [request](int64_t n) { request->set_num_inference_steps(n); }),
      Real("guidance", "Classifier-free guidance; 1 switches it off.",
           [request](double x) { request->set_guidance_scale(x); }),
      Real("flow_shift", "Shift of the noise schedule.",
           [request](double x) { request->set_flow_shift(x); }),
      Whole("frames", "Frames; 4 k + 1 for Wan.",
            [request](int64_t n) { request->set_num_frames(n); }),
      Whole("height", "Pixels.", [request](int64_t n) { request->set_height(n); }),
      Whole("width", "Pixels.", [request](int64_t n) { request->set_width(n); }),
      Whole("fps", "Frames a second of the file.", [request](int64_t n) { request->set_fps(n); }),
      {"time_limit", "TIME", "", "Give up after this long (90s, 10m).",
       [request](const std::string& text) {
         const auto limit = ParseDuration("time_limit", text);
         *request->mutable_time_limit() =
             google::protobuf::util::TimeUtil::MillisecondsToDuration(limit.count());
       }},
  };
  for (Flag& flag : AttentionFlags(request->mutable_attention())) flags.push_back(std::move(flag));
  return flags;
}

}  // namespace denoised::cli
