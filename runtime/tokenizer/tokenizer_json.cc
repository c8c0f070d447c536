#include "runtime/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "runtime/tokenizer/charsmap.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/unigram.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxSteps = 64;  // of normalizing, and of splitting
constexpr size_t kMaxAddedTokens = 100'000;
constexpr size_t kMaxTokenBytes = 1024;  // as Unigram's pieces
constexpr size_t kMaxTemplate = 64;

void CheckTokenSize(const std::string& path, const std::string& content) {
  if (content.size() <= kMaxTokenBytes) return;
  throw BadTokenizer(path, "a token of " + std::to_string(content.size()) + " bytes, at most " +
                               std::to_string(kMaxTokenBytes) + " are allowed");
}

// A node of tokenizer.json: an object with a type, whose errors name the file and the node.
ConfigReader Node(const std::string& path, const std::string& key, const Json& json) {
  return ConfigReader(json, path + ": " + key);
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
    if (value < 0) throw BadTokenizer(what, "precompiled_charsmap is not base64");
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
  if (!regex.empty()) throw UnsupportedTokenizer(node.path(), "Regex", regex, "\" {2,}\"");
  const std::string text = pattern.String("String", "");
  if (text.empty()) throw BadTokenizer(node.path(), "pattern: wanted a String that is not empty");
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
  throw UnsupportedTokenizer(node.path(), "type", type,
                             "Precompiled, Sequence, Replace, Strip, NFC, NFKC, Nmt");
}

void AddNormalizer(const std::string& path, const std::string& type, TextMap map,
                   TokenizerParts& parts) {
  if (parts.normalizers.size() == kMaxSteps) {
    throw BadTokenizer(path, "normalizer: more than " + std::to_string(kMaxSteps) + " steps");
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
    throw BadTokenizer(node.path(), "replacement: wanted one character");
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
    throw BadTokenizer(node.path(), "more than " + std::to_string(kMaxSteps) + " steps");
  }
  if (type == "WhitespaceSplit") {
    out.push_back(WhitespaceSplit{});
  } else if (type == "Metaspace") {
    out.push_back(ReadMetaspace(node));
  } else if (type == "Sequence") {
    if (!node.Has("pretokenizers")) return;
    for (const Json& child : json.at("pretokenizers")) ReadPreTokenizer(path, child, out);
  } else {
    throw UnsupportedTokenizer(node.path(), "type", type, "WhitespaceSplit, Metaspace, Sequence");
  }
}

// {"Sequence": {"id": "A"}} or {"SpecialToken": {"id": "</s>"}}
void ReadTemplatePiece(const ConfigReader& piece, bool& text_seen, TokenizerParts& parts) {
  if (piece.Has("Sequence")) {
    if (std::exchange(text_seen, true)) throw BadTokenizer(piece.path(), "the text comes twice");
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
    throw UnsupportedTokenizer(node.path(), "type", type, "TemplateProcessing");
  }
  bool text_seen = false;
  for (const Json& piece : node.Has("single") ? json.at("single") : Json::array()) {
    ReadTemplatePiece(Node(node.path(), "single", piece), text_seen, parts);
  }
  if (!text_seen) throw BadTokenizer(node.path(), "single: the text is missing");
  if (parts.before.size() + parts.after.size() > kMaxTemplate) {
    throw BadTokenizer(node.path(),
                       "single: more than " + std::to_string(kMaxTemplate) + " tokens");
  }
}

AddedToken ReadAddedToken(const ConfigReader& node) {
  if (node.Bool("single_word", false))
    throw UnsupportedTokenizer(node.path(), "single_word", "true", "false");
  return {node.String("content", ""), node.Bool("lstrip", false), node.Bool("rstrip", false),
          node.Bool("normalized", false)};
}

Unigram::Vocab ReadVocab(const std::string& path, const ConfigReader& model) {
  const auto found = model.json().find("vocab");
  if (found == model.json().end() || !found->is_array())
    throw BadTokenizer(path, "model: vocab: wanted a list");
  Unigram::Vocab vocab;
  vocab.reserve(found->size());
  for (const Json& item : *found) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number()) {
      throw BadTokenizer(
          path, "model: vocab: entry " + std::to_string(vocab.size()) + " is not [piece, score]");
    }
    vocab.emplace_back(item[0].get<std::string>(), item[1].get<double>());
  }
  return vocab;
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

}  // namespace

Error BadTokenizer(const std::string& path, const std::string& message) {
  return Error(StatusCode::kInvalidArgument, path + ": " + message, path);
}

Error UnsupportedTokenizer(const std::string& path, const std::string& key,
                           const std::string& value, const std::string& supported) {
  return Error(StatusCode::kUnimplemented,
               path + ": " + key + ": " + value + " is not supported; supported: " + supported,
               path, "UNSUPPORTED_TOKENIZER");
}

Json Member(const ConfigReader& file, const std::string& key) {
  return file.Has(key) ? file.json().at(key) : Json();
}

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

void CheckAddedTokens(const TokenizerParts& parts) {
  if (parts.added_tokens.size() > kMaxAddedTokens) {
    throw BadTokenizer(parts.path, std::to_string(parts.added_tokens.size()) +
                                       " added tokens, at most " + std::to_string(kMaxAddedTokens) +
                                       " are allowed");
  }
  for (const AddedToken& token : parts.added_tokens) CheckTokenSize(parts.path, token.content);
}

void AddCharsmap(const std::string& path, std::string_view blob, TokenizerParts& parts) {
  AddNormalizer(path, "Precompiled", Precompiled(blob, path), parts);
}

void ReadTokenizerJson(const ConfigReader& file, bool t5, TokenizerParts& parts) {
  const ConfigReader model = Node(file.path(), "model", Member(file, "model"));
  model.RequireOneOf("type", {"Unigram"});
  parts.vocab = ReadVocab(file.path(), model);
  parts.added_tokens = ReadAddedTokens(file.path(), Member(file, "added_tokens"));
  if (t5) return ReadT5Normalizer(file, parts);
  if (!model.Has("unk_id")) {
    throw UnsupportedTokenizer(file.path(), "model: unk_id", "null", "a number");
  }
  parts.unk_id = model.Int("unk_id", 0, 0, INT32_MAX);
  parts.byte_fallback = model.Bool("byte_fallback", false);
  ReadNormalizer(file.path(), Member(file, "normalizer"), parts);
  ReadPreTokenizer(file.path(), Member(file, "pre_tokenizer"), parts.pre_tokenizers);
  ReadPostProcessor(file.path(), Member(file, "post_processor"), parts);
}

}  // namespace denoised
