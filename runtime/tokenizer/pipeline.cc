#include "runtime/tokenizer/pipeline.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

// Bytes of the blanks at the front of `text`.
size_t BlanksAtFront(std::string_view text) {
  size_t at = 0;
  while (at < text.size() && IsBlank(FirstCodePoint(text.substr(at)))) {
    at += Utf8Length(text.substr(at));
  }
  return at;
}

// Where the last character of non-empty text begins.
size_t LastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// Where the blanks at the end of `text` begin.
size_t BlanksAtEnd(std::string_view text) {
  while (!text.empty()) {
    const size_t last = LastCharacter(text);
    if (!IsBlank(FirstCodePoint(text.substr(last)))) break;
    text = text.substr(0, last);
  }
  return text.size();
}

std::string MapUtf8(std::string_view text, int options) {
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                                             static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  if (size < 0) throw std::bad_alloc();  // the text is UTF-8, so nothing else can be wrong
  return std::string(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
}

bool NmtDrops(char32_t c) {
  return (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F ||
         c == 0x8F || c == 0x9F;
}

bool NmtBlank(char32_t c) {
  return c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
         (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF ||
         c == 0xFFFD;
}

std::string Nmt(std::string_view text, TextBudget& budget) {
  budget.Spend(text.size());
  std::string out;
  for (char32_t c : DecodeUtf8(text)) {
    if (!NmtDrops(c)) AppendUtf8(NmtBlank(c) ? U' ' : c, out);
  }
  return out;
}

std::string Replace(std::string_view text, std::string_view pattern, std::string_view content,
                    TextBudget& budget) {
  budget.Spend(text.size());
  std::string out;
  for (size_t found = text.find(pattern); found != std::string_view::npos;
       found = text.find(pattern)) {
    budget.Spend(content.size());
    out += text.substr(0, found);
    out += content;
    text.remove_prefix(found + pattern.size());
  }
  out += text;
  return out;
}

std::string ReplaceSpaceRuns(std::string_view text, std::string_view content, TextBudget& budget) {
  budget.Spend(text.size());
  std::string out;
  while (!text.empty()) {
    const size_t spaces = std::min(text.find_first_not_of(' '), text.size());
    if (spaces >= 2) budget.Spend(content.size());
    out += spaces >= 2 ? content : text.substr(0, spaces);
    text.remove_prefix(spaces);
    const size_t others = std::min(text.find(' '), text.size());
    out += text.substr(0, others);
    text.remove_prefix(others);
  }
  return out;
}

// What a word costs beside its letters.
constexpr size_t kWordBytes = 16;

void AddWord(Word word, std::vector<Word>& out, TextBudget& budget) {
  budget.Spend(word.text.size() + kWordBytes);
  out.push_back(std::move(word));
}

void Apply(const WhitespaceSplit&, const Word& word, std::vector<Word>& out, TextBudget& budget) {
  std::string_view text = word.text;
  bool at_start = word.at_start;
  while (!text.empty()) {
    const size_t blanks = BlanksAtFront(text);
    at_start = at_start && blanks == 0;
    text.remove_prefix(blanks);
    size_t end = 0;
    while (end < text.size() && !IsBlank(FirstCodePoint(text.substr(end)))) {
      end += Utf8Length(text.substr(end));
    }
    if (end > 0) AddWord({std::string(text.substr(0, end)), at_start}, out, budget);
    text.remove_prefix(end);
    at_start = false;
  }
}

void Apply(const Metaspace& metaspace, const Word& word, std::vector<Word>& out,
           TextBudget& budget) {
  const std::string& mark = metaspace.replacement;
  std::string text = Replace(word.text, " ", mark, budget);
  const bool prepend = metaspace.prepend == Metaspace::Prepend::kAlways ||
                       (metaspace.prepend == Metaspace::Prepend::kFirst && word.at_start);
  if (prepend && !text.starts_with(mark)) text.insert(0, mark);
  if (!metaspace.split) {
    AddWord({std::move(text), word.at_start}, out, budget);
    return;
  }
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(mark, begin + 1), text.size());
    AddWord({text.substr(begin, end - begin), word.at_start && begin == 0}, out, budget);
    begin = end;
  }
}

}  // namespace

std::string Nfc(std::string_view text) { return MapUtf8(text, UTF8PROC_STABLE | UTF8PROC_COMPOSE); }

std::string Nfkc(std::string_view text) {
  return MapUtf8(text, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
}

TextMap StripBlanks(bool left, bool right) {
  return [=](std::string_view text, TextBudget&) {
    if (left) text.remove_prefix(BlanksAtFront(text));
    if (right) text = text.substr(0, BlanksAtEnd(text));
    return std::string(text);
  };
}

TextMap ReplaceAll(std::string pattern, std::string content) {
  return [pattern = std::move(pattern), content = std::move(content)](std::string_view text,
                                                                      TextBudget& budget) {
    return Replace(text, pattern, content, budget);
  };
}

TextMap ReplaceRunsOfSpaces(std::string content) {
  return [content = std::move(content)](std::string_view text, TextBudget& budget) {
    return ReplaceSpaceRuns(text, content, budget);
  };
}

TextMap NormalizeNfc() {
  return [](std::string_view text, TextBudget& budget) {
    budget.Spend(text.size());
    return Nfc(text);
  };
}

TextMap NormalizeNfkc() {
  return [](std::string_view text, TextBudget& budget) {
    budget.Spend(text.size());
    return Nfkc(text);
  };
}

TextMap NormalizeNmt() { return Nmt; }

std::string Normalize(const std::vector<Normalizer>& steps, std::string_view text,
                      TextBudget& budget) {
  std::string out(text);
  for (const Normalizer& step : steps) {
    budget.BeginStep(step.name);
    out = step.map(out, budget);
  }
  return out;
}

std::vector<Word> SplitWords(const std::vector<PreTokenizer>& steps, Word text,
                             TextBudget& budget) {
  static const std::string kName = "pre_tokenizer";
  budget.BeginStep(kName);
  std::vector<Word> words = {std::move(text)};
  for (const PreTokenizer& step : steps) {
    std::vector<Word> next;
    for (const Word& word : words) {
      std::visit([&](const auto& rule) { Apply(rule, word, next, budget); }, step);
    }
    words = std::move(next);
  }
  std::erase_if(words, [](const Word& word) { return word.text.empty(); });
  return words;
}

AddedTokenFinder::AddedTokenFinder(const std::map<int64_t, AddedToken>& tokens) : tokens_(tokens) {
  std::vector<PrefixIndex::Entry> entries;
  for (const auto& [id, token] : tokens) entries.push_back({token.content, id});
  index_ = PrefixIndex(std::move(entries));
}

std::vector<Stretch> AddedTokenFinder::Split(std::string_view text) const {
  std::vector<Stretch> stretches;
  size_t done = 0;  // everything before is in `stretches`
  size_t at = 0;
  while (at < text.size()) {
    size_t length = 0;
    int64_t id = -1;
    index_.ForEachPrefix(text.substr(at), [&](size_t bytes, int64_t value) {
      length = bytes;
      id = value;
    });
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_.at(id);
    const size_t begin = token.strip_left ? done + BlanksAtEnd(text.substr(done, at - done)) : at;
    at += length;
    if (begin > done) stretches.push_back({text.substr(done, begin - done), -1});
    done = token.strip_right ? at + BlanksAtFront(text.substr(at)) : at;
    stretches.push_back({text.substr(begin, done - begin), id});
    at = done;
  }
  if (done < text.size()) stretches.push_back({text.substr(done), -1});
  return stretches;
}

}  // namespace denoised
