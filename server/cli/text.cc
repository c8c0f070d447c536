#include "server/cli/text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "runtime/loaders/visible_text.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised::cli {
namespace {

constexpr std::string_view kCut = "...";

size_t WidthOf(std::string_view character) {
  const auto code_point = static_cast<utf8proc_int32_t>(FirstCodePoint(character));
  return static_cast<size_t>(std::max(0, utf8proc_charwidth(code_point)));
}

// The longest beginning of `text` within `columns`.
std::string_view Head(std::string_view text, size_t columns) {
  size_t end = 0, width = 0;
  while (end < text.size()) {
    const std::string_view character = text.substr(end, Utf8Length(text.substr(end)));
    width += WidthOf(character);
    if (width > columns) break;
    end += character.size();
  }
  return text.substr(0, end);
}

}  // namespace

size_t DisplayWidth(std::string_view text) {
  size_t width = 0;
  while (!text.empty()) {
    const size_t length = std::max<size_t>(1, Utf8Length(text));
    width += Utf8Length(text) == 0 ? 1 : WidthOf(text.substr(0, length));
    text.remove_prefix(length);
  }
  return width;
}

std::string OneLine(std::string_view text, size_t columns) {
  const std::string line = VisibleText(text);
  if (DisplayWidth(line) <= columns) return line;
  const size_t room = columns - std::min(columns, kCut.size());
  return std::string(Head(line, room)) + std::string(kCut.substr(0, columns));
}

std::vector<std::string> TableLines(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], DisplayWidth(VisibleText(row[i])));
    }
  }
  std::vector<std::string> lines;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string cell = VisibleText(row[i]);
      line += cell + std::string(widths[i] - DisplayWidth(cell) + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string WhatIsNotUtf8(std::string_view text) {
  const size_t at = FindInvalidUtf8(text);
  if (at == text.size()) return "";
  std::array<char, 48> words;
  std::snprintf(words.data(), words.size(), "byte 0x%02x at offset %zu",
                static_cast<unsigned>(static_cast<unsigned char>(text[at])), at);
  return words.data();
}

}  // namespace denoised::cli
