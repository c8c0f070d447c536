// The parts of tokenizer.json around the model: normalizers, pre-tokenizers, added tokens, and the
// template of the post-processor. Torch-free; all immutable and good for any thread.
//
// Semantics follow Hugging Face tokenizers: added tokens are cut out of the raw text, what is left
// is normalised, split into words, and each word goes to the model.
#ifndef DENOISED_RUNTIME_TOKENIZER_PIPELINE_H_
#define DENOISED_RUNTIME_TOKENIZER_PIPELINE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/tokenizer/prefix_index.h"
#include "runtime/tokenizer/text_budget.h"

namespace denoised {

// Unicode's composed forms, canonical and compatible, of well-formed text. They make at most eleven
// times as much of it.
std::string Nfc(std::string_view text);
std::string Nfkc(std::string_view text);

// From text to text, within the budget.
using TextMap = std::function<std::string(std::string_view, TextBudget&)>;

// One normalizer node; a Sequence is several.
struct Normalizer {
  std::string name;  // "normalizer 3 (Replace)", for errors
  TextMap map;
};

std::string Normalize(const std::vector<Normalizer>& steps, std::string_view text,
                      TextBudget& budget);

TextMap StripBlanks(bool left, bool right);
TextMap ReplaceAll(std::string pattern, std::string content);
TextMap ReplaceRunsOfSpaces(std::string content);  // the pattern " {2,}"
TextMap NormalizeNfc();
TextMap NormalizeNfkc();
TextMap NormalizeNmt();  // the character rules of Google's NMT systems

// Splits at Unicode blanks and drops them.
struct WhitespaceSplit {};

// Turns spaces into `replacement`, puts one in front where `prepend` says so, and with `split`
// starts a new word at each.
struct Metaspace {
  enum class Prepend { kNever, kFirst, kAlways };
  std::string replacement = "\u2581";
  Prepend prepend = Prepend::kAlways;
  bool split = true;
};

using PreTokenizer = std::variant<WhitespaceSplit, Metaspace>;

struct Word {
  std::string text;
  bool at_start = false;  // the text of the request begins with it
};

std::vector<Word> SplitWords(const std::vector<PreTokenizer>& steps, Word text, TextBudget& budget);

// A token that is found in the text as written, before the model sees it.
struct AddedToken {
  std::string content;
  bool strip_left = false;   // takes the blanks before it along
  bool strip_right = false;  // ... after it
  bool normalized = false;   // looked for in the normalised text
};

// A stretch of text that is an added token (id >= 0) or is not (id < 0).
struct Stretch {
  std::string_view text;
  int64_t id = -1;
};

class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  // Tokens by id; each is looked for as `content`.
  explicit AddedTokenFinder(const std::map<int64_t, AddedToken>& tokens);

  // Covers `text` with stretches; the leftmost match wins, of those the longest. None is empty.
  std::vector<Stretch> Split(std::string_view text) const;

 private:
  PrefixIndex index_;
  std::map<int64_t, AddedToken> tokens_;
};

// Ids before and after the text.
struct PostTemplate {
  std::vector<int64_t> before;
  std::vector<int64_t> after;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_PIPELINE_H_
