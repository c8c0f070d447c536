// SentencePiece's compiled normalisation ("precompiled_charsmap"), applied as Hugging Face
// tokenizers does. Torch-free.
//
// The blob is a u32 with the size of a Darts-clone double array, the array, and then the
// replacements, each ended by NUL. SentencePiece applies the longest match at every position;
// tokenizers asks once for a whole grapheme cluster of less than 6 bytes and takes the *shortest*
// match for all of it, else goes character by character. The second is followed here, since it is
// what the models' Python pipelines run.
#ifndef DENOISED_RUNTIME_TOKENIZER_CHARSMAP_H_
#define DENOISED_RUNTIME_TOKENIZER_CHARSMAP_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/text_budget.h"

namespace denoised {

// Immutable; any thread.
class Charsmap {
 public:
  // INVALID_ARGUMENT naming `what` where the blob is no charsmap, is larger than 4 MiB, or turns a
  // character into more than 256 bytes.
  Charsmap(std::string_view blob, const std::string& what);

  // `text` is well-formed UTF-8, and so is the answer.
  std::string Normalize(std::string_view text, TextBudget& budget) const;

 private:
  // The replacement for the shortest mapped prefix of `chunk`.
  std::optional<std::string_view> Transform(std::string_view chunk) const;
  void AppendCluster(std::string_view cluster, std::string& out, TextBudget& budget) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_CHARSMAP_H_
