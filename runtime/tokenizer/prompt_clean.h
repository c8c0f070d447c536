// What diffusers does to a Wan prompt before tokenising it: ftfy's default fixes, two rounds of
// HTML unescaping, blanks collapsed. Torch-free; any thread.
//
// Differs from ftfy in its repair of mojibake, of which only the common case is done: a line that
// is UTF-8 read as Latin-1 or Windows-1252 as a whole, once or more. Other encodings, lines where
// only a part is damaged, and damage in which no-break spaces became blanks stay as they are.
#ifndef DENOISED_RUNTIME_TOKENIZER_PROMPT_CLEAN_H_
#define DENOISED_RUNTIME_TOKENIZER_PROMPT_CLEAN_H_

#include <string>
#include <string_view>

namespace denoised {

// INVALID_ARGUMENT with field "prompt" for text that is not UTF-8.
std::string CleanPrompt(std::string_view utf8);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_PROMPT_CLEAN_H_
