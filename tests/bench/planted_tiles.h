// Inputs over which the choice of VIDEO_SPARSE_ATTN is known, so that its output can be checked at
// sizes where no mask fits into memory. On any device.
#ifndef DENOISED_TESTS_BENCH_PLANTED_TILES_H_
#define DENOISED_TESTS_BENCH_PLANTED_TILES_H_

#include <ATen/ATen.h>

#include "backends/attention_backend.h"
#include "backends/tiling.h"

namespace denoised {

// Random numbers, and in every token of tile t also a step along axis t % groups of queries and
// keys: a query tile's scores are far larger for the key tiles of its own group than for any other,
// whatever is rounded on the way. So a density of 1 / groups takes exactly those.
class PlantedTiles {
 public:
  // `groups` divides the number of 4 x 4 x 4 tiles of `grid`.
  PlantedTiles(const Axes& grid, int64_t heads, int64_t head_size, int64_t groups,
               at::TensorOptions options);

  const AttentionInputs& inputs() const { return inputs_; }  // gated

  // Relative L2 of `out` [1, S, H, D] over a few whole query tiles, against float64 attention over
  // their groups and the gated coarse branch.
  double ErrorOf(const at::Tensor& out) const;

 private:
  at::Tensor TokensOf(int64_t tile) const;
  at::Tensor TokensOfGroup(int64_t group) const;
  at::Tensor TileMeans(const at::Tensor& x) const;
  at::Tensor Wanted(int64_t tile) const;

  const Partition tiles_;
  const int64_t groups_;
  at::Tensor tile_of_;  // [S] int64
  AttentionInputs inputs_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_PLANTED_TILES_H_
