#include "runtime/tokenizer/prefix_index.h"

#include <utility>

namespace denoised {

PrefixIndex::PrefixIndex(std::vector<Entry> entries) {
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.key < b.key; });
  for (Entry& entry : entries) {
    if (entry.key.empty()) continue;
    if (!entries_.empty() && entries_.back().key == entry.key) {
      entries_.back().value = entry.value;
    } else {
      entries_.push_back(std::move(entry));
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    by_first_byte_[byte] = Narrow({0, entries_.size()}, 0, static_cast<uint8_t>(byte));
  }
}

PrefixIndex::Span PrefixIndex::Narrow(Span span, size_t depth, uint8_t byte) const {
  const auto begin = entries_.begin() + static_cast<ptrdiff_t>(span.begin);
  const auto end = entries_.begin() + static_cast<ptrdiff_t>(span.end);
  const auto low = std::partition_point(begin, end, [&](const Entry& entry) {
    return static_cast<uint8_t>(entry.key[depth]) < byte;
  });
  const auto high = std::partition_point(
      low, end, [&](const Entry& entry) { return static_cast<uint8_t>(entry.key[depth]) == byte; });
  return {static_cast<size_t>(low - entries_.begin()),
          static_cast<size_t>(high - entries_.begin())};
}

std::optional<int64_t> PrefixIndex::Find(std::string_view key) const {
  const auto found = std::partition_point(entries_.begin(), entries_.end(),
                                          [&](const Entry& entry) { return entry.key < key; });
  if (found == entries_.end() || found->key != key) return std::nullopt;
  return found->value;
}

}  // namespace denoised
