// The Unigram language model of SentencePiece: the best-scoring split of a word into pieces (Kudo
// 2018, arXiv:1804.10959), with the tie-breaking of Hugging Face tokenizers. Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_UNIGRAM_H_
#define DENOISED_RUNTIME_TOKENIZER_UNIGRAM_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/prefix_index.h"

namespace denoised {

// Immutable; any thread.
class Unigram {
 public:
  static constexpr size_t kMaxPieces = 4'000'000;
  using Vocab = std::vector<std::pair<std::string, double>>;  // piece, log probability; id = index

  // INVALID_ARGUMENT naming `what` for an empty or oversized vocabulary, scores that are not
  // finite, or an `unk_id` outside.
  Unigram(Vocab vocab, int64_t unk_id, bool byte_fallback, const std::string& what);

  // Appends the ids of the best split. Characters that no piece covers become one unknown id a run,
  // or with byte_fallback the ids of their bytes' pieces.
  void Encode(std::string_view word, std::vector<int64_t>& ids) const;

  std::optional<int64_t> Find(std::string_view piece) const { return index_.Find(piece); }
  int64_t size() const { return static_cast<int64_t>(scores_.size()); }

 private:
  struct Node {  // best way to reach a byte offset
    double score = 0;
    int64_t id = 0;
    int64_t begin = -1;  // where its last piece starts; -1: not reached
  };
  std::vector<Node> BestPath(std::string_view word) const;
  void AppendUnknown(std::string_view run, std::vector<int64_t>& ids) const;

  std::vector<double> scores_;
  PrefixIndex index_;
  int64_t unk_id_;
  double unk_score_;
  std::vector<int64_t> byte_ids_;  // 256 of them, or none
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_UNIGRAM_H_
