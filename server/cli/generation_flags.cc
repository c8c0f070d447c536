#include "server/cli/generation_flags.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <utility>

#include "runtime/request_limits.h"
#include "server/cli/command.h"

namespace denoised::cli {
namespace {

constexpr std::string_view kFormats = "mp4, gif, png, npy, safetensors";

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// A whole number within what the request's field takes.
Flag Whole(const std::string& name, const std::string& field, const std::string& help,
           std::function<void(int64_t)> set) {
  const auto& limit = WholeLimit(field);
  return {name, "N", "", help + " Between " + RangeText(limit) + ".",
          SetInt(name, limit.min, limit.max, std::move(set))};
}

Flag Real(const std::string& name, const std::string& field, const std::string& help,
          std::function<void(double)> set) {
  const auto& limit = RealLimit(field);
  return {name, "X", "", help + " Between " + RangeText(limit) + ".",
          SetDouble(name, limit.min, limit.max, std::move(set))};
}

std::optional<v1::ArtifactFormat> FormatFromName(const std::string& name) {
  v1::ArtifactFormat format;
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (!v1::ArtifactFormat_Parse(upper, &format) || format == v1::ARTIFACT_FORMAT_UNSPECIFIED) {
    return std::nullopt;
  }
  return format;
}

// "-", or something that is there and is no file or folder: its name says nothing.
bool IsStream(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  return path == "-" || path.starts_with("/dev/fd/") || path == "/dev/stdout" ||
         (std::filesystem::is_other(status) && !error);
}

}  // namespace

std::vector<Flag> GenerationFlags(v1::GenerationRequest* request) {
  std::vector<Flag> flags = {
      {"model", "NAME", "", "Model to use (denoisectl models); unset: the server's default.",
       [request](const std::string& name) { request->set_model(name); }},
      {"negative", "TEXT", "", "What to steer away from; used where guidance is above 1.",
       [request](const std::string& text) { request->set_negative_prompt(text); }},
      Whole("seed", "seed", "Of the noise; unset: drawn, and reported.",
            [request](int64_t n) { request->set_seed(n); }),
      Whole("steps", "num_inference_steps", "Denoising steps.",
            [request](int64_t n) { request->set_num_inference_steps(n); }),
      Real("guidance", "guidance_scale", "Classifier-free guidance; 1 switches it off.",
           [request](double x) { request->set_guidance_scale(x); }),
      Real("flow_shift", "flow_shift", "Shift of the noise schedule.",
           [request](double x) { request->set_flow_shift(x); }),
      Whole("frames", "num_frames", "Frames; 4 k + 1 for Wan.",
            [request](int64_t n) { request->set_num_frames(n); }),
      Whole("height", "height", "Pixels; a multiple of 16 for Wan.",
            [request](int64_t n) { request->set_height(n); }),
      Whole("width", "width", "Pixels; a multiple of 16 for Wan.",
            [request](int64_t n) { request->set_width(n); }),
      Whole("fps", "fps", "Frames a second of the file.",
            [request](int64_t n) { request->set_fps(n); }),
      {"linear", "HOW", "",
       "How linear layers and norms compute on a CPU: packed, exact (diffusers' bits) or int8 "
       "(fast and coarser); unset: the model's default, packed unless somebody said otherwise.",
       [request](const std::string& text) {
         std::string name;
         SetChoice("linear", LinearChoices(), &name)(text);
         request->mutable_numerics()->set_linear(name);
       }},
      {"time_limit", "TIME", "", "Give up after this long (90s, 10m).",
       [request](const std::string& text) {
         const auto limit = ParsePositiveDuration("time_limit", text);
         *request->mutable_time_limit() =
             google::protobuf::util::TimeUtil::MillisecondsToDuration(limit.count());
       }},
      Whole("preview_every", "preview.every_steps", "Steps from one preview to the next.",
            [request](int64_t n) { request->mutable_preview()->set_every_steps(n); }),
      Whole("preview_side", "preview.max_side", "Pixels of a preview, wide and high.",
            [request](int64_t n) { request->mutable_preview()->set_max_side(n); }),
      {"priority", "CLASS", "normal",
       "Whose work comes first: batch (whenever there is room), normal or urgent.",
       [request](const std::string& text) {
         std::string name;
         SetChoice("priority", {"batch", "normal", "urgent"}, &name)(text);
         request->set_priority(name == "batch"    ? v1::BATCH
                               : name == "urgent" ? v1::URGENT
                                                  : v1::NORMAL);
       }},
      {"tenant", "NAME", "", "Who asks: tenants share the device fairly.",
       [request](const std::string& name) { request->set_tenant(name); }},
      {"idempotency_key", "KEY", "",
       "Makes a repeated command safe: the job that was made under KEY before is taken, as long as "
       "the server remembers it. With it a job of generate goes on when the client leaves.",
       [request](const std::string& key) { request->set_idempotency_key(key); }},
      {"best_effort_deadline", "", "false",
       "Try a --time_limit that by the server's prediction cannot be met.",
       [request](const std::string& text) {
         bool wanted = false;
         SetBool("best_effort_deadline", &wanted)(text);
         request->set_best_effort_deadline(wanted);
       }},
      {"pin_backends", "", "false",
       "Keep the operator's forces that hold when the job begins to its end; later ones are "
       "not for it.",
       [request](const std::string& text) {
         bool pinned = false;
         SetBool("pin_backends", &pinned)(text);
         request->set_pin_backends(pinned);
       }},
  };
  for (Flag& flag : AttentionFlags(request->mutable_attention())) flags.push_back(std::move(flag));
  return flags;
}

std::string FlagOfField(const std::string& field) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 14> kFlags = {{
      {"negative_prompt", "negative"},
      {"num_inference_steps", "steps"},
      {"guidance_scale", "guidance"},
      {"num_frames", "frames"},
      {"preview.every_steps", "preview_every"},
      {"preview.max_side", "preview_side"},
      {"numerics.linear", "linear"},
      {"attention.backend", "backend"},
      {"attention.policy", "strict"},
      {"attention.parameters", "param"},
      {"attention.schedule", "schedule"},
      {"scope.job_id", "job"},
      {"scope.share_percent", "share"},
      {"expected_generation", "generation"},
  }};
  for (const auto& [name, flag] : kFlags) {
    const std::string rest = field.substr(field.starts_with(name) ? name.size() : 0);
    if (rest.size() < field.size() && (rest.empty() || rest[0] == '.' || rest[0] == '[')) {
      return std::string(flag);
    }
  }
  return "";
}

std::vector<Flag> OutputFlags(OutputChoice* choice) {
  return {
      {"output", "FILE", "",
       "Where to write; the ending names the format: .mp4, .gif, .png (first frame, or a sheet of "
       "frames), .npy (float32 frames in 0..1), .safetensors (final latents). - is standard "
       "output; "
       "what is said besides goes to standard error then. Needed.",
       SetString(&choice->path), "o"},
      {"format", "FORMAT", "",
       "The format where FILE's name does not say it: " + std::string(kFormats) + ".",
       [choice](const std::string& name) { choice->format = ParseFormat("format", name); }},
  };
}

v1::ArtifactFormat FormatOf(const OutputChoice& choice) {
  const std::string& path = choice.path;
  if (path.empty()) throw UsageError("-o FILE is needed");
  std::string ending = std::filesystem::path(path).extension();
  if (!ending.empty()) ending.erase(0, 1);
  const auto by_name = FormatFromName(ending);
  if (choice.format && by_name && *by_name != *choice.format) {
    throw UsageError("--format is " + FormatName(*choice.format) +
                     ", but the output's name ends in ." + ending);
  }
  if (choice.format) return *choice.format;
  if (by_name) return *by_name;
  if (IsStream(path)) return v1::ARTIFACT_FORMAT_UNSPECIFIED;
  throw UsageError(
      "the output's name must end in .mp4, .gif, .png, .npy or .safetensors (or "
      "--format says what it is), got '" +
      path + "'");
}

v1::ArtifactFormat ParseFormat(const std::string& flag, const std::string& name) {
  const auto format = FormatFromName(name);
  if (format) return *format;
  throw UsageError("--" + flag + ": '" + name + "' is not one of " + std::string(kFormats));
}

std::string FormatName(v1::ArtifactFormat format) { return Lower(v1::ArtifactFormat_Name(format)); }

Flag FormatsFlag(v1::GenerationRequest* request) {
  return {"formats", "LIST", "mp4", "Results to make, by comma: " + std::string(kFormats) + ".",
          [request](const std::string& text) {
            for (size_t begin = 0; begin <= text.size();) {
              const size_t comma = std::min(text.find(',', begin), text.size());
              const auto format = ParseFormat("formats", text.substr(begin, comma - begin));
              if (std::count(request->formats().begin(), request->formats().end(), format) > 0) {
                throw UsageError("--formats names " + FormatName(format) + " twice");
              }
              request->add_formats(format);
              begin = comma + 1;
            }
          }};
}

}  // namespace denoised::cli
