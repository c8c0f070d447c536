#include "runtime/request_check.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>

namespace denoised {
namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 30;  // frames * height * width of one job

std::string Number(int64_t value) { return std::to_string(value); }

// Shortest text that reads back as `value`; a whole number without exponent or point.
std::string Number(double value) {
  std::array<char, 32> text;
  const bool whole = value == std::floor(value) && std::abs(value) < 1e15;
  const auto format = whole ? std::chars_format::fixed : std::chars_format::general;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value, format).ptr;
  return std::string(text.data(), end);
}

bool IsText(std::string_view field) { return field == "prompt" || field == "negative_prompt"; }

template <class T>
void CheckWithin(const FieldLimit<T>& limit, T value) {
  if (value >= limit.min && value <= limit.max) return;  // false for NaN
  throw InvalidField(std::string(limit.field), "must be between " + RangeText(limit) +
                                                   (IsText(limit.field) ? " bytes" : "") +
                                                   ", got " + Number(value));
}

template <class T>
const FieldLimit<T>& Find(const std::vector<FieldLimit<T>>& limits, std::string_view field) {
  for (const FieldLimit<T>& limit : limits) {
    if (limit.field == field) return limit;
  }
  throw Error(StatusCode::kInternal, "no limit is known for " + std::string(field));
}

void CheckMultiple(const std::string& field, int64_t value, int64_t multiple) {
  if (value % multiple == 0) return;
  const int64_t below = value / multiple * multiple;
  throw InvalidField(field, "must be a multiple of " + std::to_string(multiple) + ", got " +
                                std::to_string(value) +
                                " (nearest: " + (below > 0 ? std::to_string(below) + " and " : "") +
                                std::to_string(below + multiple) + ")");
}

void CheckFrames(int64_t num_frames, int64_t stride) {
  if ((num_frames - 1) % stride == 0) return;
  const int64_t below = (num_frames - 1) / stride * stride + 1;
  throw InvalidField("num_frames", "must be a multiple of " + std::to_string(stride) +
                                       " plus 1, got " + std::to_string(num_frames) +
                                       " (nearest: " + std::to_string(below) + " and " +
                                       std::to_string(below + stride) + ")");
}

void CheckAxis(const std::string& field, int64_t tokens, int64_t max_tokens) {
  if (tokens <= max_tokens) return;
  throw InvalidField(field, "gives " + std::to_string(tokens) +
                                " tokens on this axis; the model's position table has " +
                                std::to_string(max_tokens));
}

int64_t Bytes(const std::string& text) { return static_cast<int64_t>(text.size()); }

// `given` within its limit, else `fallback`.
template <class T>
T Pick(std::string_view field, const std::optional<T>& given, T fallback) {
  if (given) CheckLimit(field, *given);
  return given.value_or(fallback);
}

}  // namespace

const std::vector<FieldLimit<int64_t>>& WholeLimits() {
  static const std::vector<FieldLimit<int64_t>> kLimits = {
      {"height", 1, 4096},
      {"width", 1, 4096},
      {"num_frames", 1, 1025},
      {"fps", 1, 240},
      {"num_inference_steps", 1, 1000},
      {"max_sequence_length", 1, 4096},
      {"seed", 0, std::numeric_limits<int64_t>::max()},
      {"prompt", 0, 65536},           // bytes
      {"negative_prompt", 0, 65536},  // bytes
      {"preview.every_steps", 1, 1000},
      {"preview.max_side", 16, 1024},
  };
  return kLimits;
}

const std::vector<FieldLimit<double>>& RealLimits() {
  static const std::vector<FieldLimit<double>> kLimits = {
      {"guidance_scale", 0, 100},
      {"flow_shift", 0.01, 100},
  };
  return kLimits;
}

const FieldLimit<int64_t>& WholeLimit(std::string_view field) { return Find(WholeLimits(), field); }
const FieldLimit<double>& RealLimit(std::string_view field) { return Find(RealLimits(), field); }

std::string RangeText(const FieldLimit<int64_t>& limit) {
  return Number(limit.min) + " and " + Number(limit.max);
}

std::string RangeText(const FieldLimit<double>& limit) {
  return Number(limit.min) + " and " + Number(limit.max);
}

void CheckLimit(std::string_view field, int64_t value) { CheckWithin(WholeLimit(field), value); }
void CheckLimit(std::string_view field, double value) { CheckWithin(RealLimit(field), value); }

void CheckGeometry(int64_t height, int64_t width, int64_t num_frames, const GeometryRules& rules) {
  CheckLimit("height", height);
  CheckLimit("width", width);
  CheckLimit("num_frames", num_frames);
  CheckMultiple("height", height, rules.height_multiple);
  CheckMultiple("width", width, rules.width_multiple);
  CheckFrames(num_frames, rules.frame_stride);
  CheckAxis("height", height / rules.height_multiple, rules.max_tokens_per_axis);
  CheckAxis("width", width / rules.width_multiple, rules.max_tokens_per_axis);
  CheckAxis("num_frames", (num_frames - 1) / rules.frame_stride + 1, rules.max_tokens_per_axis);
  if (height * width * num_frames > kMaxPixels) {  // each is bounded above: no overflow
    throw InvalidField("num_frames", "height * width * num_frames must be at most " +
                                         std::to_string(kMaxPixels) + ", got " +
                                         std::to_string(height * width * num_frames));
  }
}

namespace {

void CheckTenant(const std::string& tenant) {
  constexpr size_t kMost = 64;
  const bool plain = std::all_of(tenant.begin(), tenant.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '.' || c == '_' || c == '-';
  });
  if (plain && tenant.size() <= kMost) return;
  throw InvalidField("tenant", "at most 64 of a-z, A-Z, 0-9, '.', '_' and '-'");
}

void CheckIdempotencyKey(const std::string& key) {
  constexpr size_t kMost = 128;
  const bool plain =
      std::all_of(key.begin(), key.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (plain && key.size() <= kMost) return;
  throw InvalidField("idempotency_key", "at most 128 printable characters of ASCII, no blanks");
}

}  // namespace

ResolvedParameters ResolveRequest(const GenerationRequest& request,
                                  const ResolvedParameters& defaults, const GeometryRules& rules) {
  ResolvedParameters resolved = defaults;
  CheckTenant(request.tenant);
  CheckIdempotencyKey(request.idempotency_key);
  if (request.preview) {
    CheckLimit("preview.every_steps", request.preview->every_steps);
    CheckLimit("preview.max_side", request.preview->max_side);
  }
  CheckLimit("prompt", Bytes(request.prompt));
  if (request.negative_prompt) {
    CheckLimit("negative_prompt", Bytes(*request.negative_prompt));
    resolved.negative_prompt = *request.negative_prompt;
  }
  resolved.seed = Pick("seed", request.seed, int64_t{0});
  resolved.height = request.height.value_or(defaults.height);
  resolved.width = request.width.value_or(defaults.width);
  resolved.num_frames = request.num_frames.value_or(defaults.num_frames);
  CheckGeometry(resolved.height, resolved.width, resolved.num_frames, rules);
  resolved.fps = Pick("fps", request.fps, defaults.fps);
  resolved.num_inference_steps =
      Pick("num_inference_steps", request.num_inference_steps, defaults.num_inference_steps);
  resolved.guidance_scale = Pick("guidance_scale", request.guidance_scale, defaults.guidance_scale);
  resolved.flow_shift = Pick("flow_shift", request.flow_shift, defaults.flow_shift);
  resolved.max_sequence_length =
      Pick("max_sequence_length", request.max_sequence_length, defaults.max_sequence_length);
  resolved.linear = request.numerics.linear.value_or(defaults.linear);
  return resolved;
}

}  // namespace denoised
