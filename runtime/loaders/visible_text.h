// Text of other people made safe to look at: on a terminal, in a log line, in a table. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_VISIBLE_TEXT_H_
#define DENOISED_RUNTIME_LOADERS_VISIBLE_TEXT_H_

#include <string>
#include <string_view>

namespace denoised {

// Characters that could forge a line, steer a terminal, reorder text in a viewer or hide in it:
// controls (C0, DEL, C1), line and paragraph separators, bidirectional marks, embeddings, overrides
// and isolates, the byte order mark, tag characters.
bool MustEscape(char32_t code_point);

// `text` on one line: each character that MustEscape becomes \n, \t, \x1b, \u202e or \U000e0041,
// and each byte that is no UTF-8 becomes \xe9. Everything else stays as it is.
std::string VisibleText(std::string_view text);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_VISIBLE_TEXT_H_
