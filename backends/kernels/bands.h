// Block-sparse attention whose choice of blocks is made while it runs: bands of queries, each made
// by the thread that takes it and gone when it is done, so that no list of a whole call exists.
//
// Inside a band queries may attend different blocks. Those that attend a step are gathered into
// full tiles, and their running softmax is kept between steps: what single queries do not attend
// costs nothing, unlike a row mask of block_sparse.h.
//
// A row's bits depend on its own query, its keys and its steps, never on the other queries of its
// band, the batch or the number of threads.
#ifndef DENOISED_BACKENDS_KERNELS_BANDS_H_
#define DENOISED_BACKENDS_KERNELS_BANDS_H_

#include <cstdint>
#include <vector>

#include "backends/kernels/block_sparse.h"

namespace denoised::kernels {

// Queries whose running softmax is held at once: it should fit a core's own cache.
inline constexpr int64_t kBandQueries = 1024;

// Some queries of one head and the key blocks that they attend.
struct Band {
  struct Copy {
    int32_t to, from;
  };

  std::vector<int32_t> queries;     // tokens
  std::vector<int32_t> columns;     // key blocks, step by step
  std::vector<int32_t> step_begin;  // [steps + 1], into columns; not used where all are alike
  // [steps][words()], bit i of a step's words: queries[i] attends it. Empty: all queries attend all
  // columns. With bits there are at most kBandQueries queries, and each attends a step.
  std::vector<uint64_t> rows;
  std::vector<Copy> copies;  // tokens whose output is that of one of `queries`

  int64_t words() const { return (static_cast<int64_t>(queries.size()) + 63) / 64; }
  int64_t steps() const { return static_cast<int64_t>(step_begin.size()) - 1; }
  bool alike() const { return rows.empty(); }
  bool Attends(int64_t step, int64_t query) const {
    return alike() || ((rows[step * words() + query / 64] >> (query % 64)) & 1) != 0;
  }
  void Clear();
};

// Keys in an order, cut into blocks.
struct KeyCut {
  std::vector<int32_t> order;  // token at each position; empty: position = token
  std::vector<Span> blocks;
};

// The bands of a call; together they have each query once, in `queries` or in `copies`.
class BandMaker {
 public:
  virtual ~BandMaker() = default;
  virtual const KeyCut& keys() const = 0;
  virtual int64_t bands() const = 0;  // of a head
  // Of batch * heads. `band` comes cleared; any thread.
  virtual void Make(int64_t head, int64_t band, Band* out) const = 0;
};

// Fills call.out, with a stop point before each band. No mask, not causal. `kernel` as in
// BlockSparseAttention.
void BandAttention(const BlockSparseCall& call, const BandMaker& bands, Isa isa,
                   const RunWorkers& run_workers, TileKernel kernel = nullptr);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_BANDS_H_
