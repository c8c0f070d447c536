#include "runtime/tokenizer/html_unescape.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "runtime/tokenizer/html_entities.h"
#include "runtime/tokenizer/utf8.h"
#include "runtime/tokenizer/windows_1252.h"

namespace denoised {
namespace {

constexpr size_t kMaxName = 32;     // characters of a name in html.unescape
constexpr size_t kMaxCareful = 24;  // ... and in ftfy's pattern
constexpr char32_t kReplacement = 0xFFFD;

std::optional<std::string_view> FindEntity(std::span<const HtmlEntity> table,
                                           std::string_view name) {
  const auto found = std::lower_bound(
      table.begin(), table.end(), name,
      [](const HtmlEntity& entity, std::string_view wanted) { return entity.name < wanted; });
  if (found == table.end() || found->name != name) return std::nullopt;
  return found->text;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsHex(char c) { return IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool IsAlnum(char c) { return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Code points that a numeric reference may not name; it vanishes.
bool IsForbidden(uint32_t c) {
  return (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) ||
         (c >= 0x7F && c <= 0x9F) || (c >= 0xFDD0 && c <= 0xFDEF) || (c & 0xFFFE) == 0xFFFE;
}

// HTML5, "numeric character reference end state", as far as Python follows it.
std::string NumericText(uint32_t number) {
  std::string out;
  const bool surrogate = number >= 0xD800 && number <= 0xDFFF;
  if (number == 0 || surrogate || number > 0x10FFFF) {
    AppendUtf8(kReplacement, out);
  } else if (number >= 0x80 && number <= 0x9F) {
    AppendUtf8(FromWindows1252(static_cast<uint8_t>(number)), out);
  } else if (!IsForbidden(number)) {
    AppendUtf8(number, out);
  }
  return out;
}

// What a reference at the front of `text` (behind the ampersand) means, and its length there.
struct Reference {
  size_t length = 0;  // 0: none
  std::string text;
};

Reference Numeric(std::string_view text) {
  size_t at = 1;  // behind '#'
  const bool hex = text.size() > 1 && (text[1] == 'x' || text[1] == 'X');
  if (hex) ++at;
  const size_t digits = at;
  uint32_t number = 0;
  for (; at < text.size() && (hex ? IsHex(text[at]) : IsDigit(text[at])); ++at) {
    const char c = text[at];
    const uint32_t digit = IsDigit(c) ? c - '0' : (c | 0x20) - 'a' + 10;
    number = std::min<uint32_t>(number * (hex ? 16 : 10) + digit, 0x110000);
  }
  if (at == digits) return {};
  if (at < text.size() && text[at] == ';') ++at;
  return {at, NumericText(number)};
}

// The name at the front of `text`: up to 32 characters and a semicolon.
std::string_view Name(std::string_view text) {
  size_t at = 0;
  for (size_t count = 0; count < kMaxName && at < text.size(); ++count) {
    if (std::string_view("\t\n\f <&#;").find(text[at]) != std::string_view::npos) break;
    at += Utf8Length(text.substr(at));
  }
  if (at > 0 && at < text.size() && text[at] == ';') ++at;
  return text.substr(0, at);
}

Reference Named(std::string_view text) {
  const std::string_view name = Name(text);
  if (const auto found = FindEntity(HtmlEntities(), name)) {
    return {name.size(), std::string(*found)};
  }
  // The longest beginning that is an entity, of two characters at least.
  for (size_t size = name.size(); size-- > 2;) {
    const auto found = FindEntity(HtmlEntities(), name.substr(0, size));
    if (found) return {size, std::string(*found)};
  }
  // None; what looked like a name is passed over.
  return {name.size(), "&" + std::string(name)};
}

Reference CarefulReference(std::string_view text) {
  const size_t begin = !text.empty() && text[0] == '#' ? 1 : 0;
  size_t at = begin;
  while (at < text.size() && at - begin < kMaxCareful && IsAlnum(text[at])) ++at;
  if (at == begin || at == text.size() || text[at] != ';') return {};
  const std::string_view whole = text.substr(0, at + 1);
  if (begin == 0) {
    auto found = FindEntity(HtmlEntities(), whole);
    if (!found) found = FindEntity(ShoutedHtmlEntities(), whole);
    return {whole.size(), found ? std::string(*found) : "&" + std::string(whole)};
  }
  const Reference numeric = Numeric(whole);
  // Only where the semicolon belongs to it, and is not what it stands for.
  const bool clean = numeric.length == whole.size() && numeric.text != ";";
  return {whole.size(), clean ? numeric.text : "&" + std::string(whole)};
}

template <typename Read>
std::string Unescape(std::string_view text, Read read) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t plain = std::min(text.find('&'), text.size());
    out += text.substr(0, plain);
    text.remove_prefix(plain);
    if (text.empty()) break;
    const Reference reference = read(text.substr(1));
    out += reference.length == 0 ? "&" : reference.text;
    text.remove_prefix(1 + reference.length);
  }
  return out;
}

}  // namespace

std::string UnescapeHtml(std::string_view text) {
  return Unescape(text, [](std::string_view rest) {
    return !rest.empty() && rest[0] == '#' ? Numeric(rest) : Named(rest);
  });
}

std::string UnescapeHtmlCarefully(std::string_view text) {
  return Unescape(text, CarefulReference);
}

}  // namespace denoised
