// UTF-8 in and out, and the one Unicode property that tokenising needs. Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_UTF8_H_
#define DENOISED_RUNTIME_TOKENIZER_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace denoised {

// Bytes of the well-formed sequence at the front of `text`, 0 where there is none (RFC 3629: no
// overlong forms, no surrogates, at most U+10FFFF).
size_t Utf8Length(std::string_view text);
// Offset of the first byte that is not well-formed; text.size() where all is.
size_t FindInvalidUtf8(std::string_view text);
// The first code point of well-formed, non-empty text.
char32_t FirstCodePoint(std::string_view text);
// Well-formed text as code points.
std::u32string DecodeUtf8(std::string_view text);
void AppendUtf8(char32_t code_point, std::string& out);
std::string EncodeUtf8(std::u32string_view text);

// Unicode's White_Space.
bool IsBlank(char32_t code_point);

// `text` if it is UTF-8, else INVALID_ARGUMENT with field "prompt" and the place.
std::string_view RequireUtf8Prompt(std::string_view text);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_UTF8_H_
