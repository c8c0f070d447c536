#include "runtime/tokenizer/tokenizer_files.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/tokenizer/charsmap.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

constexpr char kTokenizerJson[] = "tokenizer.json";
constexpr char kSpiece[] = "spiece.model";
constexpr size_t kMaxModelBytes = 64 << 20;
constexpr int64_t kMaxExtraIds = 10'000;
constexpr size_t kMaxSteps = 64;  // of normalizing, and of splitting
constexpr size_t kMaxAddedTokens = 100'000;
constexpr size_t kMaxTokenBytes = 1024;  // as Unigram's pieces
constexpr size_t kMaxTemplate = 64;
constexpr int64_t kT5UnknownId = 2;  // fixed by the class, whatever the files say

Error Bad(const std::string& path, const std::string& message) {
  return Error(StatusCode::kInvalidArgument, path + ": " + message, path);
}

Error Unsupported(const std::string& path, const std::string& key, const std::string& value,
                  const std::string& supported) {
  return Error(StatusCode::kUnimplemented,
               path + ": " + key + ": " + value + " is not supported; supported: " + supported,
               path, "UNSUPPORTED_TOKENIZER");
}

void CheckTokenSize(const std::string& path, const std::string& content) {
  if (content.size() <= kMaxTokenBytes) return;
  throw Bad(path, "a token of " + std::to_string(content.size()) + " bytes, at most " +
                      std::to_string(kMaxTokenBytes) + " are allowed");
}

// A node of tokenizer.json: an object with a type, whose errors name the file and the node.
ConfigReader Node(const std::string& path, const std::string& key, const Json& json) {
  return ConfigReader(json, path + ": " + key);
}

bool IsT5(const std::string& class_name) {
  return class_name == "T5Tokenizer" || class_name == "T5TokenizerFast";
}

std::string DecodeBase64(const std::string& text, const std::string& what) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  const size_t end = std::min(text.find_last_not_of('=') + 1, text.size());
  for (size_t i = 0; i < end; ++i) {
    const char c = text[i];
    int value = -1;
    if (c >= 'A' && c <= 'Z') value = c - 'A';
    if (c >= 'a' && c <= 'z') value = c - 'a' + 26;
    if (c >= '0' && c <= '9') value = c - '0' + 52;
    if (c == '+') value = 62;
    if (c == '/') value = 63;
    if (value < 0) throw Bad(what, "precompiled_charsmap is not base64");
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out.push_back(static_cast<char>(bits >> count & 0xFF));
  }
  return out;
}

TextMap Precompiled(std::string_view blob, const std::string& what) {
  const auto charsmap = std::make_shared<const Charsmap>(blob, what);
  return [charsmap](std::string_view text, TextBudget& budget) {
    return charsmap->Normalize(text, budget);
  };
}

TextMap Precompiled(const ConfigReader& node) {
  const std::string text = node.String("precompiled_charsmap", "");
  return Precompiled(DecodeBase64(text, node.path()), node.path());
}

constexpr char kSpaceRuns[] = " {2,}";  // the one regular expression of the files that people use

ConfigReader PatternNode(const ConfigReader& node) {
  return Node(node.path(), "pattern", node.Has("pattern") ? node.json().at("pattern") : Json());
}

// A text that the node of type Replace changes.
std::string ReplacePattern(const ConfigReader& node) {
  return PatternNode(node).String("String", "  ");
}

TextMap Replace(const ConfigReader& node) {
  const std::string content = node.String("content", "");
  const ConfigReader pattern = PatternNode(node);
  const std::string regex = pattern.String("Regex", "");
  if (regex == kSpaceRuns) return ReplaceRunsOfSpaces(content);
  if (!regex.empty()) throw Unsupported(node.path(), "Regex", regex, "\" {2,}\"");
  const std::string text = pattern.String("String", "");
  if (text.empty()) throw Bad(node.path(), "pattern: wanted a String that is not empty");
  CheckTokenSize(node.path(), text);
  return ReplaceAll(text, content);
}

TextMap OneNormalizer(const ConfigReader& node, const std::string& type) {
  if (type == "Precompiled") return Precompiled(node);
  if (type == "Replace") return Replace(node);
  if (type == "Strip") {
    return StripBlanks(node.Bool("strip_left", true), node.Bool("strip_right", true));
  }
  if (type == "NFC") return NormalizeNfc();
  if (type == "NFKC") return NormalizeNfkc();
  if (type == "Nmt") return NormalizeNmt();
  throw Unsupported(node.path(), "type", type,
                    "Precompiled, Sequence, Replace, Strip, NFC, NFKC, Nmt");
}

void AddNormalizer(const std::string& path, const std::string& type, TextMap map,
                   TokenizerParts& parts) {
  if (parts.normalizers.size() == kMaxSteps) {
    throw Bad(path, "normalizer: more than " + std::to_string(kMaxSteps) + " steps");
  }
  const std::string number = std::to_string(parts.normalizers.size() + 1);
  parts.normalizers.push_back({"normalizer " + number + " (" + type + ")", std::move(map)});
}

void ReadNormalizer(const std::string& path, const Json& json, TokenizerParts& parts) {
  if (json.is_null()) return;
  const ConfigReader node = Node(path, "normalizer", json);
  const std::string type = node.String("type", "");
  if (type == "Sequence") {
    if (!node.Has("normalizers")) return;
    for (const Json& child : json.at("normalizers")) ReadNormalizer(path, child, parts);
    return;
  }
  AddNormalizer(path, type, OneNormalizer(node, type), parts);
  if (type == "Replace") parts.patterns.push_back(ReplacePattern(node));
}

Metaspace ReadMetaspace(const ConfigReader& node) {
  Metaspace metaspace;
  metaspace.replacement = node.String("replacement", metaspace.replacement);
  const std::string& mark = metaspace.replacement;
  if (mark.empty() || Utf8Length(mark) != mark.size()) {
    throw Bad(node.path(), "replacement: wanted one character");
  }
  metaspace.split = node.Bool("split", true);
  node.RequireOneOf("prepend_scheme", {"always", "first", "never"});
  const std::string scheme = node.String("prepend_scheme", "always");
  if (scheme == "first") metaspace.prepend = Metaspace::Prepend::kFirst;
  // add_prefix_space is what files from before prepend_scheme have.
  if (scheme == "never" || !node.Bool("add_prefix_space", true)) {
    metaspace.prepend = Metaspace::Prepend::kNever;
  }
  return metaspace;
}

void ReadPreTokenizer(const std::string& path, const Json& json, std::vector<PreTokenizer>& out) {
  if (json.is_null()) return;
  const ConfigReader node = Node(path, "pre_tokenizer", json);
  const std::string type = node.String("type", "");
  if (out.size() == kMaxSteps) {
    throw Bad(node.path(), "more than " + std::to_string(kMaxSteps) + " steps");
  }
  if (type == "WhitespaceSplit") {
    out.push_back(WhitespaceSplit{});
  } else if (type == "Metaspace") {
    out.push_back(ReadMetaspace(node));
  } else if (type == "Sequence") {
    if (!node.Has("pretokenizers")) return;
    for (const Json& child : json.at("pretokenizers")) ReadPreTokenizer(path, child, out);
  } else {
    throw Unsupported(node.path(), "type", type, "WhitespaceSplit, Metaspace, Sequence");
  }
}

// {"Sequence": {"id": "A"}} or {"SpecialToken": {"id": "</s>"}}
void ReadTemplatePiece(const ConfigReader& piece, bool& text_seen, TokenizerParts& parts) {
  if (piece.Has("Sequence")) {
    if (std::exchange(text_seen, true)) throw Bad(piece.path(), "the text comes twice");
    return;
  }
  const ConfigReader token =
      Node(piece.path(), "SpecialToken",
           piece.Has("SpecialToken") ? piece.json().at("SpecialToken") : Json());
  (text_seen ? parts.after : parts.before).push_back(token.String("id", ""));
}

void ReadPostProcessor(const std::string& path, const Json& json, TokenizerParts& parts) {
  if (json.is_null()) return;
  const ConfigReader node = Node(path, "post_processor", json);
  const std::string type = node.String("type", "");
  if (type != "TemplateProcessing") {
    throw Unsupported(node.path(), "type", type, "TemplateProcessing");
  }
  bool text_seen = false;
  for (const Json& piece : node.Has("single") ? json.at("single") : Json::array()) {
    ReadTemplatePiece(Node(node.path(), "single", piece), text_seen, parts);
  }
  if (!text_seen) throw Bad(node.path(), "single: the text is missing");
  if (parts.before.size() + parts.after.size() > kMaxTemplate) {
    throw Bad(node.path(), "single: more than " + std::to_string(kMaxTemplate) + " tokens");
  }
}

AddedToken ReadAddedToken(const ConfigReader& node) {
  if (node.Bool("single_word", false))
    throw Unsupported(node.path(), "single_word", "true", "false");
  return {node.String("content", ""), node.Bool("lstrip", false), node.Bool("rstrip", false),
          node.Bool("normalized", false)};
}

// The list of tokenizer.json, by ascending id.
std::vector<AddedToken> ReadAddedTokens(const std::string& path, const Json& json) {
  std::vector<std::pair<int64_t, AddedToken>> tokens;
  for (const Json& item : json.is_null() ? Json::array() : json) {
    const ConfigReader node = Node(path, "added_tokens", item);
    tokens.emplace_back(node.Int("id", 0, 0, INT32_MAX), ReadAddedToken(node));
  }
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<AddedToken> sorted;
  for (auto& [id, token] : tokens) sorted.push_back(std::move(token));
  return sorted;
}

// The object of tokenizer_config.json, {"0": {...}}, in the same form.
Json DecoderAsList(const ConfigReader& config) {
  Json list = Json::array();
  for (const auto& [id, token] : config.json().at("added_tokens_decoder").items()) {
    const bool digits =
        !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || !token.is_object()) {
      throw Bad(config.path(), "added_tokens_decoder: wanted {\"id\": {token}}");
    }
    list.push_back(token);
    list.back()["id"] = std::stoll(id);
  }
  return list;
}

Unigram::Vocab ReadVocab(const std::string& path, const ConfigReader& model) {
  const auto found = model.json().find("vocab");
  if (found == model.json().end() || !found->is_array())
    throw Bad(path, "model: vocab: wanted a list");
  Unigram::Vocab vocab;
  vocab.reserve(found->size());
  for (const Json& item : *found) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number()) {
      throw Bad(path,
                "model: vocab: entry " + std::to_string(vocab.size()) + " is not [piece, score]");
    }
    vocab.emplace_back(item[0].get<std::string>(), item[1].get<double>());
  }
  return vocab;
}

Json Member(const ConfigReader& file, const std::string& key) {
  return file.Has(key) ? file.json().at(key) : Json();
}

void UseT5Words(TokenizerParts& parts) {
  parts.unk_id = kT5UnknownId;
  parts.byte_fallback = false;
  parts.pre_tokenizers = {WhitespaceSplit{}, Metaspace{}};
}

// The class keeps only the first character map, where it is the normalizer or directly in its list.
void ReadT5Normalizer(const ConfigReader& file, TokenizerParts& parts) {
  if (!file.Has("normalizer")) return;
  const ConfigReader top = Node(file.path(), "normalizer", file.json().at("normalizer"));
  Json list = Json::array({top.json()});
  if (top.String("type", "") == "Sequence") list = Member(top, "normalizers");
  for (const Json& item : list) {
    const ConfigReader node = Node(file.path(), "normalizer", item);
    if (node.String("type", "") != "Precompiled") continue;
    AddNormalizer(file.path(), "Precompiled", Precompiled(node), parts);
    return;
  }
}

void ReadTokenizerJson(const ModelFolder& folder, bool t5, TokenizerParts& parts) {
  const ConfigReader file(ReadJsonFile(folder, kTokenizerJson, kMaxModelBytes),
                          folder.PathOf(kTokenizerJson));
  const ConfigReader model = Node(file.path(), "model", Member(file, "model"));
  model.RequireOneOf("type", {"Unigram"});
  parts.vocab = ReadVocab(file.path(), model);
  parts.added_tokens = ReadAddedTokens(file.path(), Member(file, "added_tokens"));
  if (t5) {
    ReadT5Normalizer(file, parts);
    UseT5Words(parts);
    return;
  }
  if (!model.Has("unk_id")) throw Unsupported(file.path(), "model: unk_id", "null", "a number");
  parts.unk_id = model.Int("unk_id", 0, 0, INT32_MAX);
  parts.byte_fallback = model.Bool("byte_fallback", false);
  ReadNormalizer(file.path(), Member(file, "normalizer"), parts);
  ReadPreTokenizer(file.path(), Member(file, "pre_tokenizer"), parts.pre_tokenizers);
  ReadPostProcessor(file.path(), Member(file, "post_processor"), parts);
}

std::string ExtraId(int64_t i) { return "<extra_id_" + std::to_string(i) + ">"; }

void ReadSpiece(const ModelFolder& folder, int64_t extra_ids, TokenizerParts& parts) {
  const std::string path = folder.PathOf(kSpiece);
  const SentencePieceModel model =
      ParseSentencePieceModel(folder.Read(kSpiece, kMaxModelBytes), path);
  if (model.model_type != 1) {
    throw Unsupported(path, "model_type", std::to_string(model.model_type), "1 (Unigram)");
  }
  for (const SentencePiece& piece : model.pieces) {
    parts.vocab.emplace_back(piece.text, static_cast<double>(piece.score));
    const bool added = piece.type == SentencePiece::Type::kControl ||
                       piece.type == SentencePiece::Type::kUserDefined;
    if (added) parts.added_tokens.push_back({piece.text});
  }
  // The sentinels of T5 follow the pieces, the highest first.
  for (int64_t i = extra_ids - 1; i >= 0; --i) parts.vocab.emplace_back(ExtraId(i), 0.0);
  if (!model.charsmap.empty()) {
    AddNormalizer(path, "Precompiled", Precompiled(model.charsmap, path), parts);
  }
  UseT5Words(parts);
}

// A special token is a string, or an object with its content.
std::string TokenContent(const std::string& path, const std::string& key, const Json& value) {
  const Json& content =
      value.is_object() && value.contains("content") ? value.at("content") : value;
  if (!content.is_string()) throw Bad(path, key + ": wanted a token");
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
  throw Unsupported(config.path(), "tokenizer_class", name,
                    "T5Tokenizer, T5TokenizerFast, PreTrainedTokenizerFast, TokenizersBackend");
}

void CheckAddedTokens(const TokenizerParts& parts) {
  if (parts.added_tokens.size() > kMaxAddedTokens) {
    throw Bad(parts.path, std::to_string(parts.added_tokens.size()) + " added tokens, at most " +
                              std::to_string(kMaxAddedTokens) + " are allowed");
  }
  for (const AddedToken& token : parts.added_tokens) CheckTokenSize(parts.path, token.content);
}

void ReadVocabularyFile(const ModelFolder& folder, const std::string& class_name, int64_t extra_ids,
                        TokenizerParts& parts) {
  if (folder.Has(kTokenizerJson)) {
    parts.path = folder.PathOf(kTokenizerJson);
    return ReadTokenizerJson(folder, IsT5(class_name), parts);
  }
  if (!folder.Has(kSpiece)) {
    const std::string json = folder.PathOf(kTokenizerJson);
    throw Error(StatusCode::kNotFound, json + ": no such file, nor spiece.model beside it", json);
  }
  parts.path = folder.PathOf(kSpiece);
  if (!IsT5(class_name)) {
    throw Unsupported(parts.path, "tokenizer_class", class_name, "T5Tokenizer, T5TokenizerFast");
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
  if (parts.pad_token.empty()) throw Bad(config.path(), "pad_token: wanted a token, came none");
  CheckAddedTokens(parts);
  return parts;
}

}  // namespace denoised
