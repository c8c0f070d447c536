// The text encoder's last results. The same prompt, or the empty negative one, is encoded once.
//
// A result is found by all that its bits depend on within one loaded model: the tokens, the length
// that they are padded to, the numerics and the attention kernel. (The model's files, dtype and
// device are those of the pipeline that owns the cache; the instruction set that of the process.)
// What the forward called comes along, so that a receipt says the same with a hit as without: what
// the embeddings were made with.
#ifndef DENOISED_RUNTIME_PIPELINES_PROMPT_CACHE_H_
#define DENOISED_RUNTIME_PIPELINES_PROMPT_CACHE_H_

#include <ATen/ATen.h>

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <tuple>
#include <vector>

#include "runtime/attention/forward_context.h"
#include "runtime/numerics.h"

namespace denoised {

// Engine thread, but for bytes().
class PromptCache {
 public:
  struct Key {
    std::vector<int64_t> ids;  // of the real tokens
    int64_t padded_length;
    LinearNumerics linear;
    AttnBackend attention;

    bool operator<(const Key& other) const {
      return std::tie(ids, padded_length, linear, attention) <
             std::tie(other.ids, other.padded_length, other.linear, other.attention);
    }
  };
  struct Entry {
    at::Tensor embeds;  // [1, real tokens, d], on the CPU
    AttentionTally tally;
  };

  // Holds at most so many bytes; the entry that was not asked for the longest goes first.
  explicit PromptCache(int64_t capacity) : capacity_(capacity) {}

  // Null where there is none; good until the next call.
  const Entry* Find(const Key& key);
  // What is larger than the whole cache is not kept.
  void Put(const Key& key, Entry entry);

  int64_t bytes() const { return bytes_; }  // any thread

 private:
  using Uses = std::list<std::pair<Key, Entry>>;  // the latest first
  static int64_t BytesOf(const Key& key, const Entry& entry);

  const int64_t capacity_;
  Uses uses_;
  std::map<Key, Uses::iterator> entries_;
  std::atomic<int64_t> bytes_{0};
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_PROMPT_CACHE_H_
