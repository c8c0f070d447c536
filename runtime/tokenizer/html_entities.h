// The named character references of HTML5. Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_HTML_ENTITIES_H_
#define DENOISED_RUNTIME_TOKENIZER_HTML_ENTITIES_H_

#include <span>
#include <string_view>

namespace denoised {

struct HtmlEntity {
  std::string_view name;  // without the ampersand; with the semicolon where that is required
  std::string_view text;  // UTF-8
};

// Sorted by the bytes of their names.
std::span<const HtmlEntity> HtmlEntities();
// Entities of small letters written in capitals, as old databases have them: "EACUTE;" for É.
std::span<const HtmlEntity> ShoutedHtmlEntities();

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_HTML_ENTITIES_H_
