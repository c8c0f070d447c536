// Long text made short.
#ifndef DENOISED_RUNTIME_CUT_TEXT_H_
#define DENOISED_RUNTIME_CUT_TEXT_H_

#include <cstddef>
#include <string>

namespace denoised {

// `text`; where it has more than `limit` bytes, its first `limit` or a few fewer, so that no
// sequence of UTF-8 is cut in two, and "..." after them.
std::string CutText(const std::string& text, size_t limit);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_CUT_TEXT_H_
