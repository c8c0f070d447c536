// Reads a tokenizer folder into the parts that Tokenizer runs. Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_TOKENIZER_FILES_H_
#define DENOISED_RUNTIME_TOKENIZER_TOKENIZER_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/loaders/model_folder.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/unigram.h"

namespace denoised {

struct TokenizerParts {
  std::string path;  // the vocabulary's file, for errors
  Unigram::Vocab vocab;
  int64_t unk_id = 2;
  bool byte_fallback = false;
  std::vector<Normalizer> normalizers;
  // What the normalizers look for: texts on which their growth shows.
  std::vector<std::string> patterns;
  std::vector<PreTokenizer> pre_tokenizers;
  // In the order in which they get ids where the vocabulary lacks them. Of equal contents the later
  // one's flags count.
  std::vector<AddedToken> added_tokens;
  std::string pad_token;
  // Contents of the added tokens or pieces before and after the text.
  std::vector<std::string> before;
  std::vector<std::string> after;
};

// As Tokenizer::Load.
TokenizerParts ReadTokenizerParts(const ModelFolder& folder, const std::string& class_name);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_TOKENIZER_FILES_H_
