#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backends/error.h"
#include "runtime/loaders/model_index.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

// As WanPipeline.save_pretrained writes it for Wan 2.1.
nlohmann::json Wan() {
  return nlohmann::json::parse(R"({
    "_class_name": "WanPipeline", "_diffusers_version": "0.42.1",
    "boundary_ratio": null, "expand_timesteps": false,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [null, null],
    "vae": ["diffusers", "AutoencoderKLWan"]})");
}

ModelIndex Read(const nlohmann::json& json) {
  const fs::path dir = fs::path(testing::TempDir()) / ("index." + std::to_string(getpid()));
  fs::create_directories(dir);
  std::ofstream(dir / "model_index.json") << json.dump();
  const ModelIndex index = ReadModelIndex(ModelFolder(dir));
  fs::remove_all(dir);
  return index;
}

// The message with which {key: value} put into Wan's index is refused.
std::string Refusal(const std::string& key, const nlohmann::json& value, StatusCode code) {
  nlohmann::json json = Wan();
  json[key] = value;
  try {
    CheckSupported(Read(json));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(ModelIndex, ReadsWhatWanPipelineSaves) {
  const ModelIndex index = Read(Wan());
  EXPECT_EQ(index.class_name, "WanPipeline");
  EXPECT_EQ(index.components.size(), 5u);
  EXPECT_EQ(index.components.at("vae").library, "diffusers");
  EXPECT_EQ(index.components.at("vae").class_name, "AutoencoderKLWan");
  EXPECT_FALSE(index.components.contains("transformer_2"));
  EXPECT_FALSE(index.boundary_ratio.has_value());
  EXPECT_FALSE(index.expand_timesteps);
  EXPECT_NO_THROW(CheckSupported(index));
}

TEST(ModelIndex, AcceptsEveryTokenizerClassThatWritersUse) {
  for (const char* name : {"T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"}) {
    EXPECT_EQ(Refusal("tokenizer", {"transformers", name}, StatusCode::kOk), "no error");
  }
}

TEST(ModelIndex, ReadsTheScalarsOfLaterModels) {
  nlohmann::json json = Wan();
  json["boundary_ratio"] = 0.875;
  json["expand_timesteps"] = true;
  const ModelIndex index = Read(json);
  EXPECT_EQ(index.boundary_ratio, 0.875);
  EXPECT_TRUE(index.expand_timesteps);
}

TEST(ModelIndex, RefusesTheUnsupportedByKeyAndValue) {
  const StatusCode code = StatusCode::kUnimplemented;
  EXPECT_THAT(Refusal("_class_name", "LTXPipeline", code),
              HasSubstr("model_index.json: _class_name: LTXPipeline is not supported"));
  EXPECT_THAT(Refusal("scheduler", {"diffusers", "DDIMScheduler"}, code),
              HasSubstr("scheduler: DDIMScheduler is not supported; supported: UniPCMultistep"));
  EXPECT_THAT(Refusal("transformer_2", {"diffusers", "WanTransformer3DModel"}, code),
              HasSubstr("transformer_2: WanTransformer3DModel is not supported"));
  EXPECT_THAT(Refusal("vae", {nullptr, nullptr}, code), HasSubstr("vae: [null, null]"));
  EXPECT_THAT(Refusal("boundary_ratio", 0.875, code), HasSubstr("boundary_ratio: 0.875"));
  EXPECT_THAT(Refusal("expand_timesteps", true, code), HasSubstr("expand_timesteps: true"));
}

TEST(ModelIndex, RefusesTheMalformed) {
  const StatusCode code = StatusCode::kInvalidArgument;
  EXPECT_THAT(Refusal("vae", {"diffusers"}, code), HasSubstr("vae: wanted [library, class]"));
  EXPECT_THAT(Refusal("vae", {nullptr, "X"}, code), HasSubstr("vae: wanted [library, class]"));
  EXPECT_THAT(Refusal("../vae", {"diffusers", "AutoencoderKLWan"}, code), HasSubstr("a name is"));
  EXPECT_THAT(Refusal("_class_name", nullptr, code), HasSubstr("_class_name: is missing"));
  EXPECT_THAT(Refusal("boundary_ratio", "x", code), HasSubstr("boundary_ratio: wanted a finite"));
  EXPECT_THAT(Refusal("new_switch", 1, code), HasSubstr("new_switch: is not known"));
  EXPECT_EQ(Refusal("new_switch", false, code), "no error");
}

}  // namespace
}  // namespace denoised
