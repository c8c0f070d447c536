#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "backends/error.h"
#include "runtime/loaders/config.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    return error.what();
  }
  return "no error";
}

std::string ParseError(const std::string& text) {
  return ErrorOf([&] { ParseJsonStrict(text, "config.json"); });
}

ConfigReader Config(const std::string& text) {
  return ConfigReader(ParseJsonStrict(text, "vae/config.json"), "vae/config.json");
}

TEST(ParseJsonStrict, RefusesWhatIsNotStrictJson) {
  EXPECT_THAT(ParseError(R"({"a":1,"a":1})"), HasSubstr("config.json: key \"a\" comes twice"));
  EXPECT_THAT(ParseError(R"({"x":{"a":1,"b":2,"a":1}})"), HasSubstr("\"a\" comes twice"));
  EXPECT_THAT(ParseError(std::string(17, '[') + std::string(17, ']')), HasSubstr("deeper than 16"));
  EXPECT_THAT(ParseError(std::string(1'000'000, '[')), HasSubstr("deeper than 16"));
  EXPECT_THAT(ParseError("\xEF\xBB\xBF{}"), HasSubstr("byte order mark"));
  EXPECT_THAT(ParseError(std::string("{}\0x", 4)), HasSubstr("byte 2: NUL"));
  for (const char* text : {"", "{", "{}x", "[1,]", "{'a':1}", "[NaN]", "[01]", "\"\xff\"",
                           "\"\\ud800\"", "// c\n{}", "[1e999]"}) {
    EXPECT_THAT(ParseError(text), HasSubstr("config.json: not valid JSON at byte")) << text;
  }
}

TEST(ParseJsonStrict, GivesTheSameDocumentAsTheLibrary) {
  const std::string text =
      R"({"a":[1,-2,3.5,1e-06,true,null,"\u00e9\n"],"b":{"c":{},"d":[[],[[]]]},"a ":18446744073709551615})";
  EXPECT_EQ(ParseJsonStrict(text, "x"), nlohmann::json::parse(text));
  const std::string deep = std::string(16, '[') + std::string(16, ']');
  EXPECT_EQ(ParseJsonStrict(deep, "x"), nlohmann::json::parse(deep));
}

TEST(ReadJsonFile, NamesTheFile) {
  std::ofstream(std::filesystem::path(testing::TempDir()) / "big.json") << "[1, 2, 3]";
  const ModelFolder folder(testing::TempDir());
  EXPECT_EQ(ReadJsonFile(folder, "big.json").size(), 3u);
  EXPECT_THAT(ErrorOf([&] { ReadJsonFile(folder, "big.json", 4); }),
              HasSubstr("big.json: wanted at most 4"));
  try {
    ReadJsonFile(folder, "absent.json");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kNotFound);
    EXPECT_THAT(error.field(), HasSubstr("absent.json"));
  }
}

TEST(ConfigReader, AbsentAndNullGiveTheDefault) {
  const ConfigReader config = Config(R"({"image_dim":null})");
  EXPECT_FALSE(config.Has("image_dim"));
  EXPECT_EQ(config.Int("image_dim", 7, 0, 10), 7);
  EXPECT_EQ(config.Double("eps", 0.5), 0.5);
  EXPECT_TRUE(config.Bool("cross_attn_norm", true));
  EXPECT_EQ(config.String("qk_norm", "none"), "none");
  EXPECT_EQ(config.Ints("patch_size", {1, 2}), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(config.Doubles("m", {1.5}), std::vector<double>{1.5});
  EXPECT_EQ(config.Bools("t", {false, true}), (std::vector<bool>{false, true}));
}

TEST(ConfigReader, ReadsValues) {
  const ConfigReader config =
      Config(R"({"n":3,"e":1,"b":false,"s":"x","i":[1,2],"d":[1,2.5],"t":[true]})");
  EXPECT_EQ(config.Int("n", 0, 1, 3), 3);
  EXPECT_EQ(config.Double("e", 0), 1.0);
  EXPECT_FALSE(config.Bool("b", true));
  EXPECT_EQ(config.String("s", ""), "x");
  EXPECT_EQ(config.Ints("i", {}), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(config.Doubles("d", {}), (std::vector<double>{1, 2.5}));
  EXPECT_EQ(config.Bools("t", {}), std::vector<bool>{true});
}

TEST(ConfigReader, NamesFileKeyWantedAndCame) {
  const ConfigReader config =
      Config(R"({"n":"3","big":18446744073709551615,"f":1.5,"l":[1,"a"],"b":1,"neg":-1})");
  EXPECT_EQ(ErrorOf([&] { config.Int("n", 0, 0, 9); }),
            "vae/config.json: n: wanted an integer, came \"3\"");
  EXPECT_THAT(ErrorOf([&] { config.Int("big", 0, 0, 9); }), HasSubstr("wanted an integer"));
  EXPECT_THAT(ErrorOf([&] { config.Int("f", 0, 0, 9); }), HasSubstr("came 1.5"));
  EXPECT_EQ(ErrorOf([&] { config.Int("neg", 0, 1, 9); }),
            "vae/config.json: neg: wanted 1 to 9, came -1");
  EXPECT_THAT(ErrorOf([&] { config.Ints("l", {}); }), HasSubstr("came \"a\""));
  EXPECT_THAT(ErrorOf([&] { config.Ints("f", {}); }), HasSubstr("wanted a list"));
  EXPECT_THAT(ErrorOf([&] { config.Bool("b", false); }), HasSubstr("wanted true or false"));
  EXPECT_THAT(ErrorOf([&] { config.String("b", ""); }), HasSubstr("wanted a string"));
  EXPECT_THAT(ErrorOf([&] { config.Double("n", 0); }), HasSubstr("wanted a finite number"));
  EXPECT_THAT(ErrorOf([] { Config("[1]"); }), HasSubstr("wanted a JSON object, came [1]"));
}

TEST(ConfigReader, RequireOneOfListsWhatIsSupported) {
  const ConfigReader config = Config(R"({"solver_type":"midpoint","order":2,"none":null})");
  config.RequireOneOf("absent", {"x"});
  config.RequireOneOf("none", {"x"});
  config.RequireOneOf("order", {1, 2, 3});
  EXPECT_EQ(ErrorOf([&] {
              config.RequireOneOf("solver_type", {"bh1", "bh2"});
            }),
            "vae/config.json: solver_type: \"midpoint\" is not supported; supported: "
            "[\"bh1\",\"bh2\"]");
}

TEST(ConfigReader, RequireOnlyNamesASlipAndTheNearestKey) {
  const std::vector<std::string> known = {"height", "width", "num_frames", "fps"};
  Config(R"({"height":1,"fps":null})").RequireOnly(known);
  Config("{}").RequireOnly(known);
  const auto refusal = [&](const std::string& text) {
    return ErrorOf([&] { Config(text).RequireOnly(known); });
  };
  EXPECT_EQ(refusal(R"({"heigth":1})"),
            "vae/config.json: key \"heigth\" is not known (did you mean \"height\"?); known: "
            "height, width, num_frames, fps");
  EXPECT_THAT(refusal(R"({"numframes":1})"), HasSubstr("did you mean \"num_frames\"?"));
  EXPECT_THAT(refusal(R"({"guidance":1})"), HasSubstr("key \"guidance\" is not known; known:"));
  EXPECT_THAT(refusal(R"({"x":1})"), HasSubstr("key \"x\" is not known; known:"));
  EXPECT_LT(refusal("{\"" + std::string(100'000, 'x') + "\":1}").size(), 500u);
}

TEST(ParseJsonStrict, HasABudgetOfValues) {
  std::string text = "[";
  for (int i = 0; i < 8'000'001; ++i) text += "1,";
  EXPECT_THAT(ParseError(text + "1]"), HasSubstr("more than 8000000 values"));
}

TEST(ConfigReader, CutsLongValuesInErrors) {
  const ConfigReader config = Config("{\"s\":\"" + std::string(100'000, 'x') + "\"}");
  EXPECT_LT(ErrorOf([&] { config.Int("s", 0, 0, 1); }).size(), 400u);
}

}  // namespace
}  // namespace denoised
