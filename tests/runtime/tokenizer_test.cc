#include "runtime/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "backends/error.h"
#include "runtime/tokenizer/charsmap.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/prompt_clean.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/unigram.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;
namespace fs = std::filesystem;

// As transformers writes it, with a vocabulary by hand.
Json SmallTokenizer() {
  return Json::parse(R"({
    "added_tokens": [{"id": 1, "content": "</s>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "WhitespaceSplit"},
      {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "</s>", "type_id": 0}}],
      "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
    "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false,
      "vocab": [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["▁", -3], ["▁cat", -2], ["c", -4],
                ["a", -4], ["t", -4], ["ca", -5], ["s", -4]]}})");
}

class TokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) / ("tokenizer." + std::to_string(getpid()));
    fs::create_directories(dir_);
    Write("tokenizer_config.json", Json{{"tokenizer_class", "T5Tokenizer"}, {"extra_ids", 0}});
    Write("tokenizer.json", SmallTokenizer());
  }
  void TearDown() override { fs::remove_all(dir_); }

  void Write(const std::string& name, const Json& json) {
    std::ofstream(dir_ / name) << json.dump();
  }
  std::unique_ptr<Tokenizer> Load(const std::string& class_name = "") {
    return Tokenizer::Load(ModelFolder(dir_), class_name);
  }
  // The refusal of tokenizer.json where `value` is at JSON pointer `at`.
  std::string Refusal(const std::string& at, const Json& value, StatusCode code) {
    Json json = SmallTokenizer();
    json[Json::json_pointer(at)] = value;
    Write("tokenizer.json", json);
    Write("tokenizer_config.json", {{"pad_token", "<pad>"}});
    return ErrorOf([&] { Load("PreTrainedTokenizerFast"); }, code);
  }
  std::string ErrorOf(const std::function<void()>& act, StatusCode code) {
    try {
      act();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    return "no error";
  }

  fs::path dir_;
};

TEST_F(TokenizerTest, PadsAndCountsRealTokens) {
  const auto encoding = Load()->Encode("cat cats", 8);
  EXPECT_THAT(encoding.ids, ElementsAre(4, 4, 9, 1, 0, 0, 0, 0));
  EXPECT_EQ(encoding.length, 4);
}

TEST_F(TokenizerTest, EmptyAndBlankTextIsJustTheEnd) {
  for (const char* text : {"", " ", "\n\t \xE3\x80\x80"}) {
    const auto encoding = Load()->Encode(text, 3);
    EXPECT_THAT(encoding.ids, ElementsAre(1, 0, 0));
    EXPECT_EQ(encoding.length, 1);
  }
}

TEST_F(TokenizerTest, TruncationKeepsTheEnd) {
  EXPECT_THAT(Load()->Encode("cat cat cat cat", 3).ids, ElementsAre(4, 4, 1));
  EXPECT_THAT(Load()->Encode("cat", 1).ids, ElementsAre(1));
  EXPECT_THAT(ErrorOf([&] { Load()->Encode("cat", 0); }, StatusCode::kInvalidArgument),
              HasSubstr("max_length: wanted at least 1, came 0"));
}

TEST_F(TokenizerTest, UnknownRunsFuseAndSpecialTokensAreCutOut) {
  EXPECT_THAT(Load()->Encode("\xF0\x9F\x98\x80\xF0\x9F\x98\x80", 6).ids,
              ElementsAre(3, 2, 1, 0, 0, 0));
  EXPECT_THAT(Load()->Encode("cat</s>cat", 6).ids, ElementsAre(4, 1, 4, 1, 0, 0));
}

TEST_F(TokenizerTest, RefusesTextThatIsNotUtf8) {
  for (const char* text : {"\xff", "a\xC3", "\xED\xA0\x80", "\xC0\x80", "\xF5\x80\x80\x80"}) {
    EXPECT_THAT(ErrorOf([&] { Load()->Encode(text, 8); }, StatusCode::kInvalidArgument),
                HasSubstr("prompt: wanted UTF-8"));
    EXPECT_THAT(ErrorOf([&] { CleanPrompt(text); }, StatusCode::kInvalidArgument),
                HasSubstr("prompt: wanted UTF-8"));
  }
}

TEST_F(TokenizerTest, OneMegabyteTakesNoMoreThanSeconds) {
  const auto tokenizer = Load();
  const auto begin = std::chrono::steady_clock::now();
  const std::string texts[] = {std::string(1 << 20, 'c'), std::string(1 << 20, ' '),
                               std::string(1 << 20, '&'), std::string(1 << 20, '<')};
  for (const std::string& text : texts) {
    EXPECT_EQ(tokenizer->Encode(text, 512).ids.size(), 512u);
    CleanPrompt(text);
  }
  std::string nested = "&";
  while (nested.size() < 1 << 20) nested += "amp;";
  CleanPrompt(nested);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 30);
}

TEST_F(TokenizerTest, RefusesUnknownNodesByName) {
  const StatusCode code = StatusCode::kUnimplemented;
  EXPECT_THAT(Refusal("/normalizer", {{"type", "Lowercase"}}, code),
              HasSubstr("tokenizer.json: normalizer: type: Lowercase is not supported"));
  EXPECT_THAT(Refusal("/pre_tokenizer", {{"type", "ByteLevel"}}, code),
              HasSubstr("pre_tokenizer: type: ByteLevel is not supported"));
  EXPECT_THAT(Refusal("/post_processor", {{"type", "BertProcessing"}}, code),
              HasSubstr("post_processor: type: BertProcessing is not supported"));
  EXPECT_THAT(Refusal("/added_tokens/0/single_word", true, code), HasSubstr("single_word: true"));
  EXPECT_THAT(Refusal("/model/unk_id", nullptr, code), HasSubstr("unk_id: null"));
  EXPECT_THAT(ErrorOf([&] { Load("BertTokenizer"); }, code), HasSubstr("BertTokenizer"));
}

TEST_F(TokenizerTest, RefusesBrokenFilesByPlace) {
  const StatusCode code = StatusCode::kInvalidArgument;
  EXPECT_THAT(Refusal("/model/type", "BPE", code), HasSubstr("type: \"BPE\" is not supported"));
  EXPECT_THAT(Refusal("/model/vocab", Json::array(), code), HasSubstr("unk_id 2 is not one of"));
  EXPECT_THAT(Refusal("/model/vocab/3", {"x"}, code), HasSubstr("entry 3 is not [piece, score]"));
  EXPECT_THAT(Refusal("/model/unk_id", 99, code), HasSubstr("unk_id 99"));
  EXPECT_THAT(Refusal("/model", nullptr, code), HasSubstr("model: wanted a JSON object"));
  EXPECT_THAT(
      Refusal("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "!"}}, code),
      HasSubstr("is not base64"));
  EXPECT_THAT(Refusal("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", ""}}, code),
              HasSubstr("precompiled_charsmap: too short"));
  Write("tokenizer_config.json", {{"tokenizer_class", "T5Tokenizer"}, {"padding_side", "left"}});
  EXPECT_THAT(ErrorOf([&] { Load(); }, code), HasSubstr("padding_side: \"left\""));
}

// ---- budgets

Json ReplaceNode(const std::string& pattern, const std::string& content) {
  return {{"type", "Replace"}, {"pattern", {{"String", pattern}}}, {"content", content}};
}

Json SequenceOf(size_t count, const Json& node) {
  return {{"type", "Sequence"}, {"normalizers", std::vector<Json>(count, node)}};
}

TEST_F(TokenizerTest, StepsThatGrowTheTextAreRefusedAtLoading) {
  const StatusCode code = StatusCode::kInvalidArgument;
  const std::string doubling = Refusal("/normalizer", SequenceOf(40, ReplaceNode("a", "aa")), code);
  EXPECT_THAT(doubling, HasSubstr("tokenizer.json: the tokenizer's step normalizer 15 (Replace)"));
  EXPECT_THAT(doubling, HasSubstr("makes more than 66560 bytes of it"));
  // Growth that shows on the second step's pattern alone, and on runs of spaces.
  Json mixed = SequenceOf(30, ReplaceNode("b", "bbb"));
  mixed["normalizers"][0] = ReplaceNode("x", "y");
  EXPECT_THAT(Refusal("/normalizer", mixed, code), HasSubstr("(Replace)"));
  const Json spaces = {{"type", "Replace"}, {"pattern", {{"Regex", " {2,}"}}}, {"content", "    "}};
  Json runs = SequenceOf(40, ReplaceNode(" ", "  "));
  runs["normalizers"][0] = spaces;
  EXPECT_THAT(Refusal("/normalizer", runs, code), HasSubstr("(Replace)"));
  // An added token is normalised at loading too.
  Json json = SmallTokenizer();
  json["normalizer"] = SequenceOf(2, ReplaceNode("q", std::string(300, 'q')));
  json["added_tokens"][0]["normalized"] = true;
  json["added_tokens"][0]["content"] = std::string(1000, 'q');
  Write("tokenizer.json", json);
  EXPECT_THAT(ErrorOf([&] { Load("PreTrainedTokenizerFast"); }, code), HasSubstr("(Replace)"));
}

TEST_F(TokenizerTest, WhatGrowsOnlyWithThePromptIsRefusedWithIt) {
  Json json = SmallTokenizer();
  json["normalizer"] = SequenceOf(1, ReplaceNode("a", std::string(60'000, 'c')));
  Write("tokenizer.json", json);
  Write("tokenizer_config.json", {{"pad_token", "<pad>"}});
  const auto tokenizer = Load("PreTrainedTokenizerFast");
  EXPECT_EQ(tokenizer->Encode("a", 8).ids.size(), 8u);
  for (const std::string& text : {std::string(65'536, 'a'), [] {
                                    std::string stretches;  // each small, all together not
                                    for (int i = 0; i < 10'000; ++i) stretches += "a</s>";
                                    return stretches;
                                  }()}) {
    EXPECT_THAT(ErrorOf([&] { tokenizer->Encode(text, 8); }, StatusCode::kInvalidArgument),
                HasSubstr("prompt: the tokenizer's step"));
  }
}

TEST_F(TokenizerTest, SplittingHasTheSameBudget) {
  Json steps = Json::array();
  for (int i = 0; i < 40; ++i) {
    steps.push_back({{"type", "Metaspace"}, {"replacement", i % 2 == 0 ? "a" : "b"}});
  }
  Json json = SmallTokenizer();
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
  Write("tokenizer.json", json);
  Write("tokenizer_config.json", {{"pad_token", "<pad>"}});
  const auto tokenizer = Load("PreTrainedTokenizerFast");
  EXPECT_THAT(ErrorOf([&] { tokenizer->Encode("a b", 8); }, StatusCode::kInvalidArgument),
              HasSubstr("prompt: the tokenizer's step pre_tokenizer makes more than"));
}

TEST_F(TokenizerTest, StepsTokensAndCharacterMapsAreCounted) {
  const StatusCode code = StatusCode::kInvalidArgument;
  EXPECT_THAT(Refusal("/normalizer", SequenceOf(65, {{"type", "NFC"}}), code),
              HasSubstr("normalizer: more than 64 steps"));
  const Json splits = {{"type", "Sequence"},
                       {"pretokenizers", std::vector<Json>(65, {{"type", "WhitespaceSplit"}})}};
  EXPECT_THAT(Refusal("/pre_tokenizer", splits, code), HasSubstr("more than 64 steps"));
  EXPECT_THAT(Refusal("/added_tokens/0/content", std::string(1025, 'x'), code),
              HasSubstr("a token of 1025 bytes"));
  Json tokens = Json::array();
  for (int i = 0; i <= 100'000; ++i) {
    tokens.push_back({{"id", i}, {"content", std::to_string(i)}});
  }
  EXPECT_THAT(Refusal("/added_tokens", tokens, code), HasSubstr("added tokens, at most 100000"));
  std::string pieces;
  for (size_t i = 0; i <= Unigram::kMaxPieces; ++i) pieces.append("\x0a\0", 2);
  EXPECT_THAT(ErrorOf([&] { ParseSentencePieceModel(pieces, "m"); }, code),
              HasSubstr("too many pieces"));
  const uint32_t trie_bytes = 4;
  std::string blob(reinterpret_cast<const char*>(&trie_bytes), 4);
  blob += std::string(4, '\0') + std::string(257, 'x');
  EXPECT_THAT(ErrorOf([&] { Charsmap(blob, "m"); }, code), HasSubstr("into more than 256 bytes"));
  blob.resize((4 << 20) + 1);
  EXPECT_THAT(ErrorOf([&] { Charsmap(blob, "m"); }, code), HasSubstr("larger than 4 MiB"));
}

TEST_F(TokenizerTest, TheLongestPromptOfTheWidestCharactersIsWithinTheBudget) {
  Json json = SmallTokenizer();
  json["normalizer"] = {{"type", "NFKC"}};
  Write("tokenizer.json", json);
  Write("tokenizer_config.json", {{"pad_token", "<pad>"}});
  std::string text;  // U+FDFA becomes four words of eighteen letters
  while (text.size() + 3 <= 65'536) text += "\xEF\xB7\xBA";
  EXPECT_EQ(Load("PreTrainedTokenizerFast")->Encode(text, 512).ids.size(), 512u);
  std::string letters;
  while (letters.size() < 65'536) letters += "c ";
  EXPECT_EQ(Load("PreTrainedTokenizerFast")->Encode(letters, 512).ids.size(), 512u);
}

TEST_F(TokenizerTest, NothingThereIsNotFound) {
  fs::remove(dir_ / "tokenizer.json");
  EXPECT_THAT(ErrorOf([&] { Load(); }, StatusCode::kNotFound), HasSubstr("nor spiece.model"));
}

TEST_F(TokenizerTest, MutatedFilesAreReadOrRefusedButNeverCrash) {
  std::mt19937 random(11);
  const std::string honest = SmallTokenizer().dump();
  int refused = 0;
  for (int i = 0; i < 600; ++i) {
    std::string text = honest;
    for (int edit = 0; edit < 3; ++edit)
      text[random() % text.size()] = honest[random() % honest.size()];
    std::ofstream(dir_ / "tokenizer.json") << text;
    try {
      Load(i % 2 == 0 ? "T5Tokenizer" : "PreTrainedTokenizerFast")->Encode("cats </s> caat", 16);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 200);
}

TEST(SentencePieceModelFuzz, RandomBytesAreReadOrRefusedButNeverCrash) {
  std::mt19937 random(12);
  // Two pieces, a trainer_spec and a normalizer_spec.
  const std::string score("\x15\x00\x00\x80\xbf", 5);  // field 2, -1.0f
  const std::string honest =
      "\x0a\x0a\x0a\x03"
      "abc" +
      score +
      "\x0a\x09\x0a\x02"
      "<>" +
      score + "\x12\x02\x18\x01\x1a\x04\x12\x02xy";
  const SentencePieceModel model = ParseSentencePieceModel(honest, "m");
  ASSERT_EQ(model.pieces.size(), 2u);
  EXPECT_EQ(model.pieces[0].text, "abc");
  EXPECT_EQ(model.pieces[0].score, -1.0f);
  EXPECT_EQ(model.charsmap, "xy");
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = honest.substr(0, 1 + random() % honest.size());
    for (int edit = 0; edit < 3; ++edit)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      ParseSentencePieceModel(bytes, "m");
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), StatusCode::kInvalidArgument);
    }
  }
}

TEST(CharsmapFuzz, RandomTablesNeverReadOutsideAndKeepUtf8) {
  std::mt19937 random(13);
  for (int i = 0; i < 2000; ++i) {
    const uint32_t trie_bytes = 4 * (1 + random() % 300);
    std::string blob(reinterpret_cast<const char*>(&trie_bytes), 4);
    for (uint32_t b = 0; b < trie_bytes; ++b) blob.push_back(static_cast<char>(random()));
    blob += std::string("abc\0\xC3\xA4\0", 7);
    TextBudget budget(1 << 20, "m");
    const std::string out =
        Charsmap(blob, "m").Normalize("a\xC3\xA4 \xE7\x8C\xAB\xF0\x9F\x98\x80", budget);
    ASSERT_EQ(FindInvalidUtf8(out), out.size());
  }
}

TEST(Utf8, FindsTheFirstBadByteAndRoundTrips) {
  const std::string text = "a\xC3\xA4\xE7\x8C\xAB\xF0\x9F\x98\x80";
  EXPECT_EQ(FindInvalidUtf8(text), text.size());
  EXPECT_EQ(DecodeUtf8(text), U"a\u00e4\u732b\U0001F600");
  EXPECT_EQ(EncodeUtf8(DecodeUtf8(text)), text);
  EXPECT_EQ(FindInvalidUtf8(text + "\x80"), text.size());
  EXPECT_EQ(FindInvalidUtf8("ab\xE7\x8C"), 2u);
}

TEST(CleanPrompt, DoesWhatItSays) {
  EXPECT_EQ(CleanPrompt("\u201csmart\u201d"), "\"smart\"");
  EXPECT_EQ(CleanPrompt("a &amp;amp; b"), "a & b");
  EXPECT_EQ(CleanPrompt("sch\u00c3\u00b6n"), "sch\u00f6n");
  EXPECT_EQ(CleanPrompt("\uff26\uff55\uff4c\uff4c"), "Full");
  EXPECT_EQ(CleanPrompt("  e\u0301 \n\t x "), "\u00e9 x");
}

}  // namespace
}  // namespace denoised
