// What the drivers of the tile kernels share: keys and values of some heads, packed, and one
// thread's way with a tile.
#ifndef DENOISED_BACKENDS_KERNELS_HEAD_PACKS_H_
#define DENOISED_BACKENDS_KERNELS_HEAD_PACKS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "backends/kernels/block_sparse.h"
#include "backends/kernels/buffer.h"
#include "backends/kernels/pack.h"
#include "backends/kernels/thread_buffer.h"
#include "backends/kernels/tile.h"

namespace denoised::kernels {

// Keys and values of a call, in blocks of an order. Heads are packed in turns that fit a shared
// cache, each by the threads that first ask for it, which have it near then; `head` counts over
// batch * heads, `slot` within the turn. Keeps references to all of its arguments but the format.
class HeadPacks {
 public:
  HeadPacks(const BlockSparseCall& call, const std::vector<int32_t>& key_order,
            const std::vector<Span>& key_blocks, const UnitFormat& format);

  // For each turn: runs work(first head, heads), which may ask for its slots. A stop point before
  // each. `run_workers` makes what int8 keys go without.
  void ForEachTurn(const RunWorkers& run_workers,
                   const std::function<void(int64_t first, int64_t heads)>& work);

  // Of a slot, for a TileJob: packs what of it no thread has begun, and waits for those that are at
  // the rest. Any thread.
  PackedHead At(int64_t slot);
  // Of a slot that was asked for: whether the block has values that are not finite: they were
  // packed as 0, and the caller adds them to the rows that attend them (PackValues).
  bool IsOdd(int64_t slot, int64_t block) const { return odd_[slot * blocks() + block] != 0; }

  Rows ValuesOf(int64_t head, int64_t block) const { return RowsOfBlock(call_.value, head, block); }
  const UnitFormat& format() const { return format_; }
  const BlockSparseCall& call() const { return call_; }
  const std::vector<Span>& key_blocks() const { return key_blocks_; }

 private:
  // Blocks of a slot.
  struct alignas(64) Progress {
    std::atomic<int64_t> begun = 0, packed = 0;
  };

  int64_t blocks() const { return static_cast<int64_t>(key_blocks_.size()); }
  void FindMeans(int64_t first, int64_t heads, const RunWorkers& run_workers);
  void Complete(int64_t slot);
  void PackBlock(int64_t slot, int64_t block) noexcept;  // threads wait for its end
  Rows RowsOfBlock(const View& view, int64_t head, int64_t block) const;
  uint32_t* Units(int64_t slot) const { return packed_.get() + slot * (key_units_ + value_units_); }

  const BlockSparseCall& call_;
  const std::vector<int32_t>& key_order_;
  const std::vector<Span>& key_blocks_;
  const UnitFormat format_;
  int64_t first_head_ = 0;               // of the turn
  std::vector<Progress> progress_;       // [slot]
  std::vector<int32_t> first_, length_;  // of the blocks, in packed keys and in keys
  int64_t packed_keys_ = 0, key_units_ = 0, value_units_ = 0;
  Buffer<uint32_t> packed_;
  std::vector<uint8_t> odd_;            // [slot][block]
  Buffer<float> key_scale_, key_mean_;  // int8 only
};

// Rows of one head of a view of the call, in an order (null: raster).
Rows RowsOf(const BlockSparseCall& call, const View& view, int64_t head, const int32_t* order,
            Span span);
// Of the call's result.
Rows OutRowsOf(const BlockSparseCall& call, int64_t head, const int32_t* order, Span span);

// Scratch of one thread for the queries of one tile.
class TileDesk {
 public:
  explicit TileDesk(HeadPacks& packs);

  // A job over the head in `slot` for these 1 .. kMaxWidth queries, packed; blocks and edits are
  // for the caller to set. Valid until the next call.
  TileJob Begin(int64_t slot, const Rows& queries);
  // The same without queries: for results that come from elsewhere.
  TileJob Lay(int64_t slot, int rows);
  // Lanes of the last job: 16, 32 or 64.
  int width() const { return width_; }
  // Its result over its sums into the call's rows; `nothing` (0 or NaN) where a sum is 0.
  void Finish(const TileJob& job, float nothing, const Rows& out) const;

 private:
  HeadPacks& packs_;
  const ThreadBuffer<uint32_t> query_, probs_;
  const ThreadBuffer<float> out_, max_, sums_, query_scale_, scores_;
  const ThreadBuffer<int32_t> query_offset_;
  int width_ = kMaxWidth;
};

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_HEAD_PACKS_H_
