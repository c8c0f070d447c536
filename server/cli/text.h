// Text of other people (prompts, reasons, names, messages of servers) as columns on a screen.
#ifndef DENOISED_SERVER_CLI_TEXT_H_
#define DENOISED_SERVER_CLI_TEXT_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace denoised::cli {

// Columns that a terminal gives to UTF-8 text without controls: two for wide characters, none for
// combining ones.
size_t DisplayWidth(std::string_view text);

// `text` on one line with nothing in it that steers a terminal (VisibleText), cut to `columns`;
// what was cut ends in "...".
std::string OneLine(std::string_view text, size_t columns);

// Lines of columns, each padded to its widest cell; the last one is not. Cells are made one line.
std::vector<std::string> TableLines(const std::vector<std::vector<std::string>>& rows);

// Offset of the first byte that is no UTF-8, and that byte, as words: "byte 0xe9 at offset 3"; ""
// where all is well.
std::string WhatIsNotUtf8(std::string_view text);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_TEXT_H_
