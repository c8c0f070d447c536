// Character references to characters, in two strictnesses. Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_HTML_UNESCAPE_H_
#define DENOISED_RUNTIME_TOKENIZER_HTML_UNESCAPE_H_

#include <string>
#include <string_view>

namespace denoised {

// As Python's html.unescape, which follows HTML5: semicolons may be missing ("&ampx" is "&x").
std::string UnescapeHtml(std::string_view text);

// As ftfy's unescape_html: only references that end in a semicolon, and those in capitals too.
std::string UnescapeHtmlCarefully(std::string_view text);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_HTML_UNESCAPE_H_
