// A set of byte strings that answers "which of them begin this text?". Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_PREFIX_INDEX_H_
#define DENOISED_RUNTIME_TOKENIZER_PREFIX_INDEX_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace denoised {

// A sorted array walked like a trie: each byte narrows a range by binary search. As quick as a trie
// for vocabularies of this size, and nothing to build but a sort. Immutable; any thread.
class PrefixIndex {
 public:
  struct Entry {
    std::string key;
    int64_t value;
  };

  PrefixIndex() = default;
  // Of equal keys the last one counts; empty keys are left out.
  explicit PrefixIndex(std::vector<Entry> entries);

  // Calls visit(length, value) for every key that `text` begins with, shortest first.
  template <typename Visit>
  void ForEachPrefix(std::string_view text, Visit visit) const;

  std::optional<int64_t> Find(std::string_view key) const;
  bool empty() const { return entries_.empty(); }

 private:
  struct Span {
    size_t begin;
    size_t end;
  };
  // The entries of `span` (which share their first `depth` bytes) that have `byte` next.
  Span Narrow(Span span, size_t depth, uint8_t byte) const;

  std::vector<Entry> entries_;
  std::array<Span, 256> by_first_byte_{};
};

template <typename Visit>
void PrefixIndex::ForEachPrefix(std::string_view text, Visit visit) const {
  if (text.empty()) return;
  Span span = by_first_byte_[static_cast<uint8_t>(text[0])];
  for (size_t depth = 1; span.begin < span.end; ++depth) {
    const Entry& first = entries_[span.begin];
    if (first.key.size() == depth) {
      visit(depth, first.value);
      ++span.begin;
    }
    if (depth == text.size()) return;
    span = Narrow(span, depth, static_cast<uint8_t>(text[depth]));
  }
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_PREFIX_INDEX_H_
