#include "runtime/loaders/visible_text.h"

#include <array>
#include <cstdint>
#include <cstdio>

#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

std::string Escaped(uint32_t code) {
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  const char* const format = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
  std::array<char, 16> text;
  std::snprintf(text.data(), text.size(), format, code);
  return text.data();
}

}  // namespace

bool MustEscape(char32_t code_point) {
  const auto between = [code_point](char32_t low, char32_t high) {
    return code_point >= low && code_point <= high;
  };
  return code_point < 0x20 || between(0x7f, 0x9f) || code_point == 0x061c ||
         between(0x200e, 0x200f) || between(0x2028, 0x202e) || between(0x2066, 0x2069) ||
         code_point == 0xfeff || between(0xe0000, 0xe007f);
}

std::string VisibleText(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    if (length == 0) {
      out += Escaped(static_cast<unsigned char>(text.front()));
      text.remove_prefix(1);
      continue;
    }
    const char32_t code_point = FirstCodePoint(text);
    if (MustEscape(code_point)) {
      out += Escaped(code_point);
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace denoised
