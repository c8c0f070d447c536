// Text to token ids as transformers 5 does it for T5 and UMT5: SentencePiece Unigram behind the
// pipeline of Hugging Face tokenizers. Torch-free.
//
// Formats: tokenizer.json first, spiece.model (SentencePiece's protobuf) where that is absent, each
// with tokenizer_config.json beside it. What the classes differ in:
// - T5Tokenizer, T5TokenizerFast: keep vocabulary and character map of the file and always split
//   on blanks, put U+2581 before each word, map unknown characters to <unk> and append </s>.
// - PreTrainedTokenizerFast, TokenizersBackend: take tokenizer.json as it stands.
#ifndef DENOISED_RUNTIME_TOKENIZER_TOKENIZER_H_
#define DENOISED_RUNTIME_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/loaders/model_folder.h"

namespace denoised {

// Immutable after loading: any thread may encode.
class Tokenizer {
 public:
  struct Encoding {
    std::vector<int64_t> ids;  // max_length of them, padded with the pad id
    int64_t length = 0;        // how many are real, </s> included
    int64_t wanted = 0;        // how many there would be without the limit
  };

  // `folder` is the tokenizer folder of a model, `class_name` the class that model_index.json gives
  // it; where empty, tokenizer_config.json says. Errors name the file and the key: NOT_FOUND where
  // neither format is there, INVALID_ARGUMENT for broken files, UNIMPLEMENTED for node types of
  // tokenizer.json that are not known here.
  static std::unique_ptr<Tokenizer> Load(const ModelFolder& folder,
                                         const std::string& class_name = "");
  ~Tokenizer();

  // Cut to `max_length` where longer, keeping the final </s>. The text is taken as it is: callers
  // clean prompts first (prompt_clean.h). INVALID_ARGUMENT with field "prompt" for text that is not
  // UTF-8. Time is linear in the text.
  Encoding Encode(std::string_view utf8, int64_t max_length) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_TOKENIZER_H_
