#include "runtime/pipelines/prompt_cache.h"

#include <utility>

namespace denoised {

// The key is kept twice.
int64_t PromptCache::BytesOf(const Key& key, const Entry& entry) {
  constexpr int64_t kNodes = 512;
  return static_cast<int64_t>(entry.embeds.nbytes() + 2 * key.ids.size() * sizeof(int64_t) +
                              2 * sizeof(Entry)) +
         kNodes;
}

const PromptCache::Entry* PromptCache::Find(const Key& key) {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return nullptr;
  uses_.splice(uses_.begin(), uses_, found->second);
  return &found->second->second;
}

void PromptCache::Put(const Key& key, Entry entry) {
  const int64_t size = BytesOf(key, entry);
  if (size > capacity_ || entries_.contains(key)) return;
  while (bytes_ + size > capacity_) {
    bytes_ -= BytesOf(uses_.back().first, uses_.back().second);
    entries_.erase(uses_.back().first);
    uses_.pop_back();
  }
  uses_.emplace_front(key, std::move(entry));
  entries_[key] = uses_.begin();
  bytes_ += size;
}

}  // namespace denoised
