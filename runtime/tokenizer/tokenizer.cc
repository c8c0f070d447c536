#include "runtime/tokenizer/tokenizer.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "backends/error.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/tokenizer_files.h"
#include "runtime/tokenizer/unigram.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

// What the steps may make of a text of the file itself: a growth that no honest file has.
size_t LoadBudget(std::string_view text) { return (64 << 10) + 1024 * text.size(); }

// Finds at loading what would grow without end later.
void TryNormalizers(const TokenizerParts& parts) {
  for (const std::string& pattern : parts.patterns) {
    TextBudget budget(LoadBudget(pattern), parts.path);
    Normalize(parts.normalizers, pattern, budget);
  }
}

// Gives every added token the id of its piece, or the next free one, in order.
std::map<int64_t, AddedToken> AssignIds(const std::vector<AddedToken>& tokens, const Unigram& model,
                                        std::map<std::string, int64_t>& by_content) {
  std::map<int64_t, AddedToken> by_id;
  int64_t next = model.size();
  for (const AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    const auto known = by_content.find(token.content);
    int64_t id = known != by_content.end() ? known->second : -1;
    if (id < 0) id = model.Find(token.content).value_or(-1);
    if (id < 0) id = next++;
    by_content[token.content] = id;
    by_id[id] = token;
  }
  return by_id;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerParts parts)
      : model(std::move(parts.vocab), parts.unk_id, parts.byte_fallback, parts.path),
        normalizers(std::move(parts.normalizers)),
        pre_tokenizers(std::move(parts.pre_tokenizers)) {
    std::map<std::string, int64_t> ids;
    std::map<int64_t, AddedToken> raw, normalized;
    for (auto& [id, token] : AssignIds(parts.added_tokens, model, ids)) {
      if (token.normalized) {
        TextBudget budget(LoadBudget(token.content), parts.path);
        token.content = Normalize(normalizers, token.content, budget);
      }
      (token.normalized ? normalized : raw).emplace(id, token);
    }
    raw_tokens = AddedTokenFinder(raw);
    normalized_tokens = AddedTokenFinder(normalized);
    const auto id_of = [&](const std::string& content) {
      if (const auto found = ids.find(content); found != ids.end()) return found->second;
      if (const auto piece = model.Find(content)) return *piece;
      throw Error(StatusCode::kInvalidArgument,
                  parts.path + ": special token '" + content + "' is not in the vocabulary",
                  parts.path);
    };
    pad_id = id_of(parts.pad_token);
    for (const std::string& token : parts.before) ends.before.push_back(id_of(token));
    for (const std::string& token : parts.after) ends.after.push_back(id_of(token));
  }

  // One stretch of raw text between added tokens.
  void EncodeStretch(std::string_view text, bool at_start, TextBudget& budget,
                     std::vector<int64_t>& ids) const {
    const std::string normal = Normalize(normalizers, text, budget);
    for (const Stretch& stretch : normalized_tokens.Split(normal)) {
      if (stretch.id >= 0) {
        ids.push_back(stretch.id);
        continue;
      }
      const bool first = at_start && stretch.text.data() == normal.data();
      for (const Word& word :
           SplitWords(pre_tokenizers, {std::string(stretch.text), first}, budget)) {
        model.Encode(word.text, ids);
      }
    }
  }

  Unigram model;
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;
  AddedTokenFinder raw_tokens;
  AddedTokenFinder normalized_tokens;
  PostTemplate ends;
  int64_t pad_id = 0;
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

std::unique_ptr<Tokenizer> Tokenizer::Load(const ModelFolder& folder,
                                           const std::string& class_name) {
  TokenizerParts parts = ReadTokenizerParts(folder, class_name);
  TryNormalizers(parts);
  auto impl = std::make_unique<Impl>(std::move(parts));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

Tokenizer::Encoding Tokenizer::Encode(std::string_view utf8, int64_t max_length) const {
  RequireUtf8Prompt(utf8);
  const PostTemplate& ends = impl_->ends;
  const int64_t special = static_cast<int64_t>(ends.before.size() + ends.after.size());
  if (max_length < special || max_length < 1) {
    throw Error(StatusCode::kInvalidArgument, "max_length: wanted at least " +
                                                  std::to_string(std::max<int64_t>(special, 1)) +
                                                  ", came " + std::to_string(max_length));
  }
  TextBudget budget(TextBudget::kPromptBytes, "prompt");
  std::vector<int64_t> text_ids;
  for (const Stretch& stretch : impl_->raw_tokens.Split(utf8)) {
    if (stretch.id >= 0) {
      text_ids.push_back(stretch.id);
    } else {
      impl_->EncodeStretch(stretch.text, stretch.text.data() == utf8.data(), budget, text_ids);
    }
  }
  Encoding encoding;
  encoding.wanted = static_cast<int64_t>(text_ids.size()) + special;
  text_ids.resize(std::min(text_ids.size(), static_cast<size_t>(max_length - special)));
  encoding.ids = ends.before;
  encoding.ids.insert(encoding.ids.end(), text_ids.begin(), text_ids.end());
  encoding.ids.insert(encoding.ids.end(), ends.after.begin(), ends.after.end());
  encoding.length = static_cast<int64_t>(encoding.ids.size());
  encoding.ids.resize(static_cast<size_t>(max_length), impl_->pad_id);
  return encoding;
}

}  // namespace denoised
