#include "runtime/tokenizer/charsmap.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>

#include "backends/error.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

// Fields of a double array unit (github.com/s-yata/darts-clone).
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t Value(uint32_t unit) { return unit & 0x7FFFFFFF; }
uint32_t Label(uint32_t unit) { return unit & 0x800000FF; }
uint32_t Offset(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }

constexpr size_t kMaxBlobBytes = 4 << 20;     // the files that people use have 240 KiB
constexpr size_t kMaxReplacementBytes = 256;  // Unicode's own longest has 33
constexpr size_t kMaxWholeCluster = 6;        // bytes; from here on character by character

// Of the texts between the NULs.
size_t LongestReplacement(std::string_view replacements) {
  size_t longest = 0;
  while (!replacements.empty()) {
    const size_t size = std::min(replacements.find('\0'), replacements.size());
    longest = std::max(longest, size);
    replacements.remove_prefix(std::min(size + 1, replacements.size()));
  }
  return longest;
}

}  // namespace

Charsmap::Charsmap(std::string_view blob, const std::string& what) {
  const auto bad = [&](const char* why) {
    return Error(StatusCode::kInvalidArgument, what + ": precompiled_charsmap: " + why, what);
  };
  if (blob.size() > kMaxBlobBytes) throw bad("is larger than 4 MiB");
  uint32_t trie_bytes = 0;
  if (blob.size() < sizeof(trie_bytes)) throw bad("too short");
  std::memcpy(&trie_bytes, blob.data(), sizeof(trie_bytes));
  blob.remove_prefix(sizeof(trie_bytes));
  if (trie_bytes % 4 != 0 || trie_bytes == 0 || trie_bytes > blob.size()) {
    throw bad("the size of its trie does not fit");
  }
  units_.resize(trie_bytes / 4);
  std::memcpy(units_.data(), blob.data(), trie_bytes);
  replacements_ = blob.substr(trie_bytes);
  if (FindInvalidUtf8(replacements_) != replacements_.size()) throw bad("is not UTF-8");
  if (LongestReplacement(replacements_) > kMaxReplacementBytes) {
    throw bad("turns a character into more than 256 bytes");
  }
}

std::optional<std::string_view> Charsmap::Transform(std::string_view chunk) const {
  uint32_t at = Offset(units_[0]);
  for (char c : chunk) {
    const uint8_t byte = static_cast<uint8_t>(c);
    at ^= byte;
    if (byte == 0 || at >= units_.size() || Label(units_[at]) != byte) return std::nullopt;
    const uint32_t unit = units_[at];
    at ^= Offset(unit);
    if (at >= units_.size()) return std::nullopt;
    if (!HasLeaf(unit)) continue;
    const uint32_t begin = Value(units_[at]);
    if (begin > replacements_.size()) return std::nullopt;
    const std::string_view rest = std::string_view(replacements_).substr(begin);
    // A hostile value may point into the middle of a character.
    if (!rest.empty() && Utf8Length(rest) == 0) return std::nullopt;
    return rest.substr(0, rest.find('\0'));
  }
  return std::nullopt;
}

void Charsmap::AppendCluster(std::string_view cluster, std::string& out, TextBudget& budget) const {
  if (cluster.size() < kMaxWholeCluster) {
    if (const auto mapped = Transform(cluster)) {
      budget.Spend(mapped->size());
      out += *mapped;
      return;
    }
  }
  while (!cluster.empty()) {
    const std::string_view character = cluster.substr(0, Utf8Length(cluster));
    const std::string_view mapped = Transform(character).value_or(character);
    budget.Spend(mapped.size());
    out += mapped;
    cluster.remove_prefix(character.size());
  }
}

std::string Charsmap::Normalize(std::string_view text, TextBudget& budget) const {
  std::string out;
  out.reserve(text.size());
  utf8proc_int32_t state = 0;
  size_t begin = 0;  // of the current cluster
  size_t at = 0;
  utf8proc_int32_t previous = 0;
  while (at < text.size()) {
    const auto here = static_cast<utf8proc_int32_t>(FirstCodePoint(text.substr(at)));
    if (at > begin && utf8proc_grapheme_break_stateful(previous, here, &state)) {
      AppendCluster(text.substr(begin, at - begin), out, budget);
      begin = at;
    }
    previous = here;
    at += Utf8Length(text.substr(at));
  }
  AppendCluster(text.substr(begin), out, budget);
  return out;
}

}  // namespace denoised
