// Orders of tokens and their cuts into blocks: tiles of a video grid, chunks, plain runs.
// Torch-free.
//
// Axes are (T, H, W), W fastest. Tiles at the end of an axis are clipped, never padded.
#ifndef DENOISED_BACKENDS_TILING_H_
#define DENOISED_BACKENDS_TILING_H_

#include <array>
#include <cstdint>
#include <vector>

#include "backends/kernels/bands.h"
#include "backends/kernels/block_sparse.h"

namespace denoised {

using Axes = std::array<int64_t, 3>;

int64_t Product(const Axes& axes);

// A sequence in some order, cut into consecutive blocks of any length.
struct Partition {
  std::vector<int32_t> order;    // token at each position
  std::vector<int32_t> lengths;  // of the blocks, each > 0; they add up to order.size()

  int64_t blocks() const { return static_cast<int64_t>(lengths.size()); }
  std::vector<int32_t> BlockOfToken() const;  // [tokens]
};

// Tokens of the grid tile by tile (W fastest among tiles), raster order inside each.
Partition TileGrid(const Axes& grid, const Axes& tile);

// Consecutive runs of `run` tokens; the last may be short.
Partition RunsOf(int64_t length, int64_t run);

// Tiles along each axis: ceil(grid / tile).
Axes TilesPerAxis(const Axes& grid, const Axes& tile);

// A partition of keys whose blocks may be longer than the kernel's, cut to its length.
struct KeyBlocks {
  explicit KeyBlocks(const Partition& partition);

  kernels::KeyCut cut;
  std::vector<int32_t> first;  // [blocks + 1]: where in cut.blocks each block of the partition is

  int64_t blocks() const { return static_cast<int64_t>(first.size()) - 1; }
  // Adds the kernel's blocks of one of the partition.
  void Append(int32_t block, std::vector<int32_t>* columns) const {
    for (int32_t i = first[block]; i < first[block + 1]; ++i) columns->push_back(i);
  }
};

// Builds a kernels::BlockPlan from partitions whose blocks may be longer than the kernel's, and
// from rows that name blocks of the partitions.
class PlanBuilder {
 public:
  PlanBuilder(const Partition& queries, const Partition& keys, int64_t lists);

  // The key blocks that `query_block` attends, ascending. Call for every query block of list 0,
  // then of list 1, and so on.
  // `row_masks`, where given, holds one word a key block: which queries of the block attend it; the
  // query block must then be one of at most kernels::kBlock, and every row must give masks.
  void AddRow(int64_t query_block, const std::vector<int32_t>& key_blocks,
              const std::vector<uint64_t>& row_masks = {});

  kernels::BlockPlan Take() { return std::move(plan_); }

 private:
  kernels::BlockPlan plan_;
  const std::vector<int32_t> query_first_;  // KeyBlocks::first of the queries
  const KeyBlocks keys_;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_TILING_H_
