#include "runtime/request_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>

namespace denoised {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::SizeIs;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();

ResolvedParameters Defaults() {
  ResolvedParameters defaults;
  defaults.model = "model";
  defaults.height = 480;
  defaults.width = 832;
  defaults.num_frames = 81;
  defaults.fps = 16;
  defaults.num_inference_steps = 50;
  defaults.guidance_scale = 5;
  defaults.flow_shift = 3;
  defaults.max_sequence_length = 512;
  defaults.negative_prompt = "the model's own";
  defaults.scheduler = "UniPC";
  return defaults;
}

// Any size is a multiple and fits the tables, so that only the limits speak.
GeometryRules LooseRules() { return {1, 1, 1, int64_t{1} << 40, 1}; }

// How each field of the tables is set. A new field in a table must come here too.
const std::map<std::string, std::function<void(GenerationRequest&, int64_t)>>& WholeSetters() {
  const auto number = [](auto member) {
    return [member](GenerationRequest& r, int64_t v) { r.*member = v; };
  };
  static const std::map<std::string, std::function<void(GenerationRequest&, int64_t)>> setters = {
      {"height", number(&GenerationRequest::height)},
      {"width", number(&GenerationRequest::width)},
      {"num_frames", number(&GenerationRequest::num_frames)},
      {"fps", number(&GenerationRequest::fps)},
      {"num_inference_steps", number(&GenerationRequest::num_inference_steps)},
      {"max_sequence_length", number(&GenerationRequest::max_sequence_length)},
      {"seed", number(&GenerationRequest::seed)},
      {"prompt", [](auto& r, int64_t v) { r.prompt.assign(static_cast<size_t>(v), 'x'); }},
      {"negative_prompt",
       [](auto& r, int64_t v) { r.negative_prompt = std::string(static_cast<size_t>(v), 'x'); }},
      {"preview.every_steps",
       [](auto& r, int64_t v) {
         r.preview = {v, 256};
       }},
      {"preview.max_side",
       [](auto& r, int64_t v) {
         r.preview = {1, v};
       }},
  };
  return setters;
}

const std::map<std::string, std::optional<double> GenerationRequest::*>& RealMembers() {
  static const std::map<std::string, std::optional<double> GenerationRequest::*> members = {
      {"guidance_scale", &GenerationRequest::guidance_scale},
      {"flow_shift", &GenerationRequest::flow_shift},
  };
  return members;
}

bool IsText(std::string_view field) { return field.ends_with("prompt"); }

// The field that the request is refused for; "" where it is accepted.
std::string RefusedField(const GenerationRequest& request,
                         const GeometryRules& rules = LooseRules()) {
  ResolvedParameters defaults = Defaults();
  defaults.height = defaults.width = 1;  // so that no edge of another field meets the pixel cap
  defaults.num_frames = 1;
  try {
    ResolveRequest(request, defaults, rules);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(error.what(), testing::StartsWith(error.field() + ": "));
    return error.field();
  }
}

std::string RefusedField(std::string_view field, int64_t value) {
  GenerationRequest request;
  WholeSetters().at(std::string(field))(request, value);
  return RefusedField(request);
}

std::string RefusedField(std::string_view field, double value) {
  GenerationRequest request;
  request.*RealMembers().at(std::string(field)) = value;
  return RefusedField(request);
}

TEST(RequestLimits, EveryWholeNumberIsAcceptedUpToItsEdgesAndRefusedBeyond) {
  ASSERT_THAT(WholeLimits(), SizeIs(WholeSetters().size()));
  for (const auto& limit : WholeLimits()) {
    SCOPED_TRACE(std::string(limit.field));
    EXPECT_LT(limit.min, limit.max);
    EXPECT_EQ(RefusedField(limit.field, limit.min), "");
    EXPECT_EQ(RefusedField(limit.field, limit.max), "");
    if (limit.max < kMost) {
      EXPECT_EQ(RefusedField(limit.field, limit.max + 1), limit.field);
    }
    if (IsText(limit.field)) continue;  // nothing is shorter than empty
    EXPECT_EQ(RefusedField(limit.field, limit.min - 1), limit.field);
  }
}

TEST(RequestLimits, EveryRealNumberIsAcceptedUpToItsEdgesAndRefusedBeyond) {
  ASSERT_THAT(RealLimits(), SizeIs(RealMembers().size()));
  for (const auto& limit : RealLimits()) {
    SCOPED_TRACE(std::string(limit.field));
    EXPECT_LT(limit.min, limit.max);
    EXPECT_EQ(RefusedField(limit.field, limit.min), "");
    EXPECT_EQ(RefusedField(limit.field, limit.max), "");
    EXPECT_EQ(RefusedField(limit.field, std::nextafter(limit.max, kInfinity)), limit.field);
    EXPECT_EQ(RefusedField(limit.field, std::nextafter(limit.min, -kInfinity)), limit.field);
  }
}

TEST(RequestLimits, NumbersThatAreNoNumbersAreRefused) {
  for (const auto& limit : RealLimits()) {
    for (double value : {kNan, -kNan, kInfinity, -kInfinity, 1e300, -1e300}) {
      EXPECT_EQ(RefusedField(limit.field, value), limit.field) << value;
    }
  }
  EXPECT_EQ(RefusedField("guidance_scale", -0.0), "");
  EXPECT_EQ(RefusedField("flow_shift", -0.0), "flow_shift");
  EXPECT_EQ(RefusedField("flow_shift", std::numeric_limits<double>::denorm_min()), "flow_shift");
}

TEST(RequestLimits, TheGreatestIntegersAreRefusedExceptForTheSeed) {
  for (const auto& limit : WholeLimits()) {
    if (IsText(limit.field)) continue;
    for (int64_t value : {kMost, kMost - 1, int64_t{1} << 53, int64_t{1} << 62}) {
      EXPECT_EQ(RefusedField(limit.field, value), limit.field == "seed" ? "" : limit.field);
    }
    EXPECT_EQ(RefusedField(limit.field, kLeast), limit.field);
    EXPECT_EQ(RefusedField(limit.field, int64_t{-1}), limit.field);
  }
}

TEST(RequestLimits, ASeedOf63BitsIsKeptToTheLastDigit) {
  for (int64_t seed : {int64_t{0}, (int64_t{1} << 53) + 1, kMost - 1, kMost}) {
    GenerationRequest request;
    request.seed = seed;
    EXPECT_EQ(ResolveRequest(request, Defaults(), GeometryRules()).seed, seed);
  }
}

TEST(RequestLimits, AMegabyteOfPromptIsRefusedWithItsSize) {
  GenerationRequest request;
  request.prompt.assign(1 << 20, 'x');
  try {
    ResolveRequest(request, Defaults(), GeometryRules());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "prompt");
    EXPECT_STREQ(error.what(), "prompt: must be between 0 and 65536 bytes, got 1048576");
  }
}

TEST(RequestLimits, MessagesWriteBoundsAndValuesInFull) {
  const auto message = [](std::string_view field, auto value) -> std::string {
    try {
      CheckLimit(field, value);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(message("seed", int64_t{-1}),
            "seed: must be between 0 and 9223372036854775807, got -1");
  EXPECT_EQ(message("seed", kLeast),
            "seed: must be between 0 and 9223372036854775807, got -9223372036854775808");
  EXPECT_EQ(message("fps", (int64_t{1} << 53) + 1),
            "fps: must be between 1 and 240, got 9007199254740993");
  EXPECT_EQ(message("flow_shift", 0.001), "flow_shift: must be between 0.01 and 100, got 0.001");
  EXPECT_EQ(message("flow_shift", 1e-9), "flow_shift: must be between 0.01 and 100, got 1e-09");
  EXPECT_EQ(message("guidance_scale", kNan), "guidance_scale: must be between 0 and 100, got nan");
  EXPECT_EQ(message("guidance_scale", 1e300),
            "guidance_scale: must be between 0 and 100, got 1e+300");
}

TEST(RequestLimits, AFieldWithoutALimitIsAMistakeOfTheProgram) {
  try {
    CheckLimit("no_such_field", 1.0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInternal);
  }
}

std::string GeometryMessage(int64_t height, int64_t width, int64_t frames,
                            const GeometryRules& rules = {}) {
  try {
    CheckGeometry(height, width, frames, rules);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(RequestGeometry, SizesMustBeMultiplesAndTheNearestAreNamed) {
  EXPECT_EQ(GeometryMessage(480, 832, 81), "");
  EXPECT_EQ(GeometryMessage(481, 832, 81),
            "height: must be a multiple of 16, got 481 (nearest: 480 and 496)");
  EXPECT_EQ(GeometryMessage(480, 8, 81), "width: must be a multiple of 16, got 8 (nearest: 16)");
  for (int64_t size = 1; size <= 64; ++size) {
    EXPECT_EQ(GeometryMessage(size, 64, 5).empty(), size % 16 == 0) << size;
    EXPECT_EQ(GeometryMessage(64, size, 5).empty(), size % 16 == 0) << size;
  }
}

TEST(RequestGeometry, FramesAreAMultiplePlusOne) {
  EXPECT_EQ(GeometryMessage(64, 64, 80),
            "num_frames: must be a multiple of 4 plus 1, got 80 (nearest: 77 and 81)");
  for (int64_t frames = 1; frames <= 33; ++frames) {
    EXPECT_EQ(GeometryMessage(64, 64, frames).empty(), frames % 4 == 1) << frames;
  }
}

TEST(RequestGeometry, AnAxisFitsTheModelsPositionTable) {
  GeometryRules rules;
  rules.max_tokens_per_axis = 4;
  EXPECT_EQ(GeometryMessage(64, 64, 13, rules), "");
  EXPECT_THAT(GeometryMessage(80, 64, 13, rules),
              AllOf(HasSubstr("height"), HasSubstr("5 tokens"), HasSubstr("has 4")));
  EXPECT_THAT(GeometryMessage(64, 80, 13, rules), HasSubstr("width"));
  EXPECT_THAT(GeometryMessage(64, 64, 17, rules), HasSubstr("num_frames"));
}

TEST(RequestGeometry, ThePixelsOfAJobAreCapped) {
  // 2^30 pixels: 4096 * 4096 * 64 are too many by one stride's rounding, 61 fit.
  EXPECT_EQ(GeometryMessage(4096, 4096, 61), "");
  EXPECT_THAT(GeometryMessage(4096, 4096, 65), HasSubstr("at most 1073741824, got 1090519040"));
  EXPECT_THAT(GeometryMessage(4096, 4096, 1025), HasSubstr("at most 1073741824"));
  EXPECT_EQ(GeometryMessage(4096, 4096, 64, LooseRules()), "") << "exactly the cap";
  EXPECT_THAT(GeometryMessage(4096, 4096, 65, LooseRules()), HasSubstr("num_frames"));
}

TEST(RequestGeometry, HugeAndNegativeSizesCannotOverflow) {
  for (int64_t size : {kMost, kLeast, int64_t{-16}, int64_t{0}, int64_t{1} << 32}) {
    EXPECT_THAT(GeometryMessage(size, 64, 5), HasSubstr("height: must be between"));
    EXPECT_THAT(GeometryMessage(64, size, 5), HasSubstr("width: must be between"));
    EXPECT_THAT(GeometryMessage(64, 64, size), HasSubstr("num_frames: must be between"));
    EXPECT_FALSE(GeometryMessage(size, size, size).empty());
  }
}

TEST(ResolveRequest, TakesTheModelsDefaultsWhereNothingIsGiven) {
  const ResolvedParameters resolved = ResolveRequest({}, Defaults(), GeometryRules());
  EXPECT_EQ(resolved.model, "model");
  EXPECT_EQ(resolved.scheduler, "UniPC");
  EXPECT_EQ(resolved.height, 480);
  EXPECT_EQ(resolved.width, 832);
  EXPECT_EQ(resolved.num_frames, 81);
  EXPECT_EQ(resolved.fps, 16);
  EXPECT_EQ(resolved.num_inference_steps, 50);
  EXPECT_EQ(resolved.guidance_scale, 5);
  EXPECT_EQ(resolved.flow_shift, 3);
  EXPECT_EQ(resolved.max_sequence_length, 512);
  EXPECT_EQ(resolved.negative_prompt, "the model's own");
  EXPECT_EQ(resolved.seed, 0);
}

TEST(ResolveRequest, TakesWhatIsGivenEvenWhereItLooksUnset) {
  GenerationRequest request;
  request.negative_prompt = "";
  request.guidance_scale = 0;
  request.seed = 0;
  request.height = 64;
  request.width = 128;
  request.num_frames = 1;
  request.fps = 30;
  request.num_inference_steps = 1;
  request.flow_shift = 8.5;
  request.max_sequence_length = 226;
  const ResolvedParameters resolved = ResolveRequest(request, Defaults(), GeometryRules());
  EXPECT_EQ(resolved.negative_prompt, "");
  EXPECT_EQ(resolved.guidance_scale, 0);
  EXPECT_EQ(resolved.height, 64);
  EXPECT_EQ(resolved.width, 128);
  EXPECT_EQ(resolved.num_frames, 1);
  EXPECT_EQ(resolved.fps, 30);
  EXPECT_EQ(resolved.num_inference_steps, 1);
  EXPECT_EQ(resolved.flow_shift, 8.5);
  EXPECT_EQ(resolved.max_sequence_length, 226);
}

TEST(ResolveRequest, GivenAndDefaultSizesAreCheckedTogether) {
  ResolvedParameters defaults = Defaults();
  defaults.height = defaults.width = 4096;
  GenerationRequest request;
  request.num_frames = 81;
  EXPECT_THROW(ResolveRequest(request, defaults, GeometryRules()), Error);
}

}  // namespace
}  // namespace denoised
