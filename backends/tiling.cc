#include "backends/tiling.h"

#include <algorithm>
#include <numeric>

namespace denoised {

int64_t Product(const Axes& axes) { return axes[0] * axes[1] * axes[2]; }

std::vector<int32_t> Partition::BlockOfToken() const {
  std::vector<int32_t> block_of(order.size());
  size_t position = 0;
  for (size_t block = 0; block < lengths.size(); ++block) {
    for (int32_t i = 0; i < lengths[block]; ++i) {
      block_of[order[position++]] = static_cast<int32_t>(block);
    }
  }
  return block_of;
}

Axes TilesPerAxis(const Axes& grid, const Axes& tile) {
  Axes tiles;
  for (int axis = 0; axis < 3; ++axis) tiles[axis] = (grid[axis] + tile[axis] - 1) / tile[axis];
  return tiles;
}

namespace {

// Appends the tokens of the box [low, high) in raster order; returns how many.
int32_t AppendBox(const Axes& grid, const Axes& low, const Axes& high,
                  std::vector<int32_t>* order) {
  const size_t before = order->size();
  for (int64_t t = low[0]; t < high[0]; ++t) {
    for (int64_t h = low[1]; h < high[1]; ++h) {
      for (int64_t w = low[2]; w < high[2]; ++w) {
        order->push_back(static_cast<int32_t>((t * grid[1] + h) * grid[2] + w));
      }
    }
  }
  return static_cast<int32_t>(order->size() - before);
}

}  // namespace

Partition TileGrid(const Axes& grid, const Axes& tile) {
  Partition partition;
  partition.order.reserve(Product(grid));
  const Axes tiles = TilesPerAxis(grid, tile);
  for (int64_t index = 0; index < Product(tiles); ++index) {
    const Axes at = {index / (tiles[1] * tiles[2]), index / tiles[2] % tiles[1], index % tiles[2]};
    Axes low, high;
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = at[axis] * tile[axis];
      high[axis] = std::min(low[axis] + tile[axis], grid[axis]);
    }
    partition.lengths.push_back(AppendBox(grid, low, high, &partition.order));
  }
  return partition;
}

Partition RunsOf(int64_t length, int64_t run) {
  Partition partition;
  partition.order.resize(length);
  std::iota(partition.order.begin(), partition.order.end(), 0);
  for (int64_t first = 0; first < length; first += run) {
    partition.lengths.push_back(static_cast<int32_t>(std::min(run, length - first)));
  }
  return partition;
}

KeyBlocks::KeyBlocks(const Partition& partition) : first{0} {
  cut.order = partition.order;
  int32_t position = 0;
  for (int32_t length : partition.lengths) {
    for (int32_t done = 0; done < length; done += kernels::kBlock) {
      cut.blocks.push_back({position + done, std::min<int32_t>(kernels::kBlock, length - done)});
    }
    position += length;
    first.push_back(static_cast<int32_t>(cut.blocks.size()));
  }
}

PlanBuilder::PlanBuilder(const Partition& queries, const Partition& keys, int64_t lists)
    : query_first_(KeyBlocks(queries).first), keys_(keys) {
  plan_.query_order = queries.order;
  plan_.query_blocks = KeyBlocks(queries).cut.blocks;
  plan_.key_order = keys.order;
  plan_.key_blocks = keys_.cut.blocks;
  plan_.lists = lists;
  plan_.row_begin = {0};
}

void PlanBuilder::AddRow(int64_t query_block, const std::vector<int32_t>& key_blocks,
                         const std::vector<uint64_t>& row_masks) {
  for (int32_t span = query_first_[query_block]; span < query_first_[query_block + 1]; ++span) {
    for (size_t block = 0; block < key_blocks.size(); ++block) {
      keys_.Append(key_blocks[block], &plan_.columns);
      if (!row_masks.empty()) plan_.row_masks.resize(plan_.columns.size(), row_masks[block]);
    }
    plan_.row_begin.push_back(static_cast<int64_t>(plan_.columns.size()));
  }
}

}  // namespace denoised
