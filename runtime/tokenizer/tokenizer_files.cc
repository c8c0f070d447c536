#include "runtime/tokenizer/tokenizer_files.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/tokenizer_json.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

constexpr char kTokenizerJson[] = "tokenizer.json";
constexpr char kSpiece[] = "spiece.model";
constexpr size_t kMaxModelBytes = 64 << 20;
constexpr int64_t kMaxExtraIds = 10'000;
constexpr int64_t kT5UnknownId = 2;  // fixed by the class, whatever the files say

bool IsT5(const std::string& class_name) {
  return class_name == "T5Tokenizer" || class_name == "T5TokenizerFast";
}

// The object of tokenizer_config.json, {"0": {...}}, in the form of tokenizer.json's
// list.
Json DecoderAsList(const ConfigReader& config) {
  Json list = Json::array();
  for (const auto& [id, token] : config.json().at("added_tokens_decoder").items()) {
    const bool digits =
        !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || !token.is_object()) {
      throw BadTokenizer(config.path(), "added_tokens_decoder: wanted {\"id\": {token}}");
    }
    list.push_back(token);
    list.back()["id"] = std::stoll(id);
  }
  return list;
}

void UseT5Words(TokenizerParts& parts) {
  parts.unk_id = kT5UnknownId;
  parts.byte_fallback = false;
  parts.pre_tokenizers = {WhitespaceSplit{}, Metaspace{}};
}

std::string ExtraId(int64_t i) { return "<extra_id_" + std::to_string(i) + ">"; }

void ReadSpiece(const ModelFolder& folder, int64_t extra_ids, TokenizerParts& parts) {
  const std::string path = folder.PathOf(kSpiece);
  const SentencePieceModel model =
      ParseSentencePieceModel(folder.Read(kSpiece, kMaxModelBytes), path);
  if (model.model_type != 1) {
    throw UnsupportedTokenizer(path, "model_type", std::to_string(model.model_type), "1 (Unigram)");
  }
  for (const SentencePiece& piece : model.pieces) {
    parts.vocab.emplace_back(piece.text, static_cast<double>(piece.score));
    const bool added = piece.type == SentencePiece::Type::kControl ||
                       piece.type == SentencePiece::Type::kUserDefined;
    if (added) parts.added_tokens.push_back({piece.text});
  }
  // The sentinels of T5 follow the pieces, the highest first.
  for (int64_t i = extra_ids - 1; i >= 0; --i) parts.vocab.emplace_back(ExtraId(i), 0.0);
  if (!model.charsmap.empty()) AddCharsmap(path, model.charsmap, parts);
  UseT5Words(parts);
}

// A special token is a string, or an object with its content.
std::string TokenContent(const std::string& path, const std::string& key, const Json& value) {
  const Json& content =
      value.is_object() && value.contains("content") ? value.at("content") : value;
  if (!content.is_string()) throw BadTokenizer(path, key + ": wanted a token");
  return content.get<std::string>();
}

// tokenizer_config.json, over which special_tokens_map.json goes where the first has no list of
// added tokens: older writers kept the special tokens there.
ConfigReader ReadTokenizerConfig(const ModelFolder& folder) {
  const std::string name = "tokenizer_config.json", map_name = "special_tokens_map.json";
  Json config = Json::object();
  if (folder.Has(name)) config = ConfigReader::FromFile(folder, name).json();
  if (!config.contains("added_tokens_decoder") && folder.Has(map_name)) {
    const ConfigReader map = ConfigReader::FromFile(folder, map_name);
    for (const auto& [key, value] : map.json().items()) config[key] = value;
  }
  return ConfigReader(std::move(config), folder.PathOf(name));
}

void CheckConfig(const ConfigReader& config) {
  config.RequireOneOf("padding_side", {"right"});
  config.RequireOneOf("truncation_side", {"right"});
  config.RequireOneOf("split_special_tokens", {false});
}

// Adds `content` unless a token of that content is there.
void AddMissing(const std::string& content, TokenizerParts& parts) {
  const bool there = std::any_of(parts.added_tokens.begin(), parts.added_tokens.end(),
                                 [&](const AddedToken& token) { return token.content == content; });
  if (!there) parts.added_tokens.push_back({content});
}

// eos, unk and pad of the configuration, with the defaults of the T5 class.
std::optional<std::string> NamedToken(const ConfigReader& config, const std::string& key, bool t5) {
  if (config.Has(key)) return TokenContent(config.path(), key, config.json().at(key));
  if (!t5) return std::nullopt;
  if (key == "eos_token") return "</s>";
  if (key == "unk_token") return "<unk>";
  if (key == "pad_token") return "<pad>";
  return std::nullopt;
}

std::vector<std::string> ExtraTokens(const ConfigReader& config, bool t5, int64_t extra_ids) {
  std::vector<std::string> extras;
  for (const char* key : {"extra_special_tokens", "additional_special_tokens"}) {
    const Json list = Member(config, key);
    if (!list.is_array() || list.empty()) continue;
    for (const Json& item : list) extras.push_back(TokenContent(config.path(), key, item));
    return extras;
  }
  if (!t5) return extras;
  for (int64_t i = 0; i < extra_ids; ++i) extras.push_back(ExtraId(i));
  return extras;
}

void AddSpecialTokens(const ConfigReader& config, bool t5, int64_t extra_ids,
                      TokenizerParts& parts) {
  for (const char* key : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                          "cls_token", "mask_token"}) {
    const std::optional<std::string> token = NamedToken(config, key, t5);
    if (token) AddMissing(*token, parts);
  }
  std::set<std::string> there;
  for (const AddedToken& token : parts.added_tokens) there.insert(token.content);
  for (const std::string& token : ExtraTokens(config, t5, extra_ids)) {
    if (there.insert(token).second) parts.added_tokens.push_back({token});
  }
}

std::string ClassName(const ConfigReader& config, const std::string& asked) {
  const std::string name = !asked.empty() ? asked : config.String("tokenizer_class", "T5Tokenizer");
  if (IsT5(name) || name == "PreTrainedTokenizerFast" || name == "TokenizersBackend") return name;
  throw UnsupportedTokenizer(
      config.path(), "tokenizer_class", name,
      "T5Tokenizer, T5TokenizerFast, PreTrainedTokenizerFast, TokenizersBackend");
}

void ReadVocabularyFile(const ModelFolder& folder, const std::string& class_name, int64_t extra_ids,
                        TokenizerParts& parts) {
  if (folder.Has(kTokenizerJson)) {
    parts.path = folder.PathOf(kTokenizerJson);
    const ConfigReader file(ReadJsonFile(folder, kTokenizerJson, kMaxModelBytes), parts.path);
    ReadTokenizerJson(file, IsT5(class_name), parts);
    if (IsT5(class_name)) UseT5Words(parts);
    return;
  }
  if (!folder.Has(kSpiece)) {
    const std::string json = folder.PathOf(kTokenizerJson);
    throw Error(StatusCode::kNotFound, json + ": no such file, nor spiece.model beside it", json);
  }
  parts.path = folder.PathOf(kSpiece);
  if (!IsT5(class_name)) {
    throw UnsupportedTokenizer(parts.path, "tokenizer_class", class_name,
                               "T5Tokenizer, T5TokenizerFast");
  }
  ReadSpiece(folder, extra_ids, parts);
}

}  // namespace

TokenizerParts ReadTokenizerParts(const ModelFolder& folder, const std::string& class_name) {
  const ConfigReader config = ReadTokenizerConfig(folder);
  CheckConfig(config);
  const std::string type = ClassName(config, class_name);
  const bool t5 = IsT5(type);
  const int64_t extra_ids = config.Int("extra_ids", 100, 0, kMaxExtraIds);
  TokenizerParts parts;
  ReadVocabularyFile(folder, type, extra_ids, parts);
  if (config.Has("added_tokens_decoder")) {
    const auto tokens = ReadAddedTokens(config.path(), DecoderAsList(config));
    if (t5) parts.added_tokens.clear();  // that class reads one of the two lists
    parts.added_tokens.insert(parts.added_tokens.end(), tokens.begin(), tokens.end());
  }
  AddSpecialTokens(config, t5, extra_ids, parts);
  if (t5) parts.after = {*NamedToken(config, "eos_token", true)};
  parts.pad_token = NamedToken(config, "pad_token", t5).value_or("");
  if (parts.pad_token.empty()) {
    throw BadTokenizer(config.path(), "pad_token: wanted a token, came none");
  }
  CheckAddedTokens(parts);
  return parts;
}

}  // namespace denoised
