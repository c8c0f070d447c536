// What the GEMM driver hands to an instruction set's tile kernel: raw pointers only, for the reason
// that tile.h gives.
#ifndef DENOISED_BACKENDS_KERNELS_GEMM_TILE_H_
#define DENOISED_BACKENDS_KERNELS_GEMM_TILE_H_

#include <cstdint>

namespace denoised::kernels {

// Output columns of a panel, whatever the vectors' width: weights are packed alike everywhere.
inline constexpr int kPanelColumns = 32;
// Rows of the tallest register tile: 12 x 32 on AVX-512, twice 6 x 16 on AVX2.
inline constexpr int kTileRows = 12;

// One tile: `sums`[height][sum_stride] (+)= rows^T panel over `units`, a unit being what tile.h
// says. Sums begin at zero and end up added to what stands there (`first`: stored over it).
struct GemmTile {
  const uint32_t* rows;  // [units][height]
  const void* panel;     // [units][kPanelColumns] units, or bfloat16 where the kernel widens
  int64_t units;
  int height;  // 4, 8 or 12
  bool first;
  float* sums;
  int64_t sum_stride;
};
using GemmTileKernel = void (*)(const GemmTile& tile);

void GemmTileAvx2(const GemmTile& tile);       // float32 panels
void GemmTileAvx2Widen(const GemmTile& tile);  // bfloat16 panels, widened in registers
void GemmTileAvx512(const GemmTile& tile);     // as above, wider
void GemmTileAvx512Widen(const GemmTile& tile);
void GemmTileAvx512Bf16(const GemmTile& tile);  // pairs of bfloat16

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_GEMM_TILE_H_
