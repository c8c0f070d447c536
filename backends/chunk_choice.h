// VMoBA's gate: which chunks of keys each query chooses beside its own (arXiv 2506.23858).
//
// Gates (a query times the mean key of a chunk) are made for 64 queries at a time (kernels/gates.h)
// and forgotten: no array holds one for each query. Where entries of many queries compete with each
// other, their cut is found digit by digit, in as many passes over the gates.
#ifndef DENOISED_BACKENDS_CHUNK_CHOICE_H_
#define DENOISED_BACKENDS_CHUNK_CHOICE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "backends/kernels/buffer.h"
#include "backends/sparse_backend.h"

namespace denoised {

// Which entries (head, query, chunk) of a batch row compete with each other.
enum class SelectType : uint8_t { kQueryHead, kOverall, kHeadGlobal, kBlock };

struct ChunkRule {
  // Of each group the own chunks and the largest gates, stretched to [0, 1], until together they
  // hold `threshold` of the group's sum, one at least; or the top_k largest a query of the group,
  // own chunks first. Of entries of one query that are level the lower chunk goes first; in the
  // other groups all that are level with the last one chosen are chosen.
  bool by_threshold = true;
  SelectType type = SelectType::kQueryHead;
  double threshold = 0.25;
  int64_t top_k = 1;
};

// Refers to its arguments. Immutable after construction, any thread.
class ChunkChoice {
 public:
  // `chunks`: the keys' cut, of which each query has its own chunk by its position.
  ChunkChoice(const SparseCall& call, const Partition& chunks, const std::vector<int32_t>& chunk_of,
              const ChunkRule& rule);

  // What finding cuts takes at most.
  static int64_t CutBytes(const ChunkRule& rule, int64_t chunks, int64_t heads);

  int64_t chunks() const { return chunks_; }

  // For queries at positions first .. first + count - 1 of `head` (of batch * heads): the chunks
  // that each attends, its own among them. chosen[chunk][words], words = (count + 63) / 64: bit i
  // of a chunk's words: query first + i attends it.
  void Choose(int64_t head, int64_t first, int64_t count, uint64_t* chosen) const;

  // Bytes that a thread takes for that.
  static int64_t ChooseBytes(int64_t chunks, int64_t head_size);

  // Whether any query of the batch row chose a chunk beside its own.
  bool AnyExtra(int64_t batch) const;

 private:
  // What entries of one group must reach.
  struct Cut {
    float low = 0, high = 0;  // of the group's gates
    bool all = false;         // some gate is not finite
    uint32_t least_key = 0;   // kernels::KeyOf of the smallest that is chosen
  };
  struct Histogram;

  static int64_t GroupsOf(const ChunkRule& rule, int64_t chunks, int64_t heads);
  int64_t Groups() const { return GroupsOf(rule_, chunks_, call_.heads()); }
  int64_t GroupOf(int64_t head, int64_t chunk) const;
  // What one thread needs to make gates and to choose by them.
  struct Desk;
  // The desk's gates of up to 64 queries: [chunk][kGateLanes]. The `soon` queries after them are
  // fetched meanwhile.
  void FillGates(int64_t head, int64_t first, int64_t count, int64_t soon, Desk* desk) const;
  // visit(part, head, first position, count, gates) over all queries of a batch row, on all
  // threads; `part` numbers the pieces of work that run one after the other.
  using Visit = std::function<void(int64_t part, int64_t head, int64_t first, int64_t count,
                                   const float* gates)>;
  static constexpr int64_t kParts = 16;
  void ForAllQueries(int64_t batch, const Visit& visit) const;
  void FindRanges(int64_t batch, std::vector<Cut>* cuts) const;
  void FindCuts(int64_t batch, std::vector<Cut>* cuts) const;
  Histogram CountDigits(int64_t batch, const std::vector<Cut>& cuts, int shift) const;
  void CountEntry(const Cut& cut, int shift, float gate, int64_t group, bool own,
                  Histogram* histogram) const;
  double WantedOf(const Histogram& histogram, int64_t group) const;
  static int CutDigit(const Histogram& histogram, int64_t group, double wanted, uint64_t* above);
  // The value by which an entry competes: stretched, or with own chunks far above.
  float ValueOf(const Cut& cut, float gate, bool own) const;
  // Of up to 64 queries: a word for each chunk, `stride` words apart.
  void ChooseRun(int64_t head, int64_t first, int64_t count, int64_t soon, Desk* desk,
                 uint64_t* chosen, int64_t stride) const;
  void ChooseByCut(int64_t head, const int32_t* own, int64_t count, const float* gates,
                   uint64_t* chosen, int64_t stride) const;
  void ChooseMost(const int32_t* own, int64_t count, Desk* desk, uint64_t* chosen,
                  int64_t stride) const;

  const SparseCall& call_;
  const Partition& cut_;
  const std::vector<int32_t>& chunk_of_;  // [position]
  const ChunkRule rule_;
  const int64_t chunks_;
  const std::vector<kernels::Buffer<float>> means_;  // [head]: of the chunks' keys, packed
  std::vector<std::vector<Cut>> cuts_;               // [batch][group]; none for kQueryHead
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_CHUNK_CHOICE_H_
