// What the GEMM driver hands to an instruction set's kernels: raw pointers only, for the reason
// that tile.h gives.
#ifndef DENOISED_BACKENDS_KERNELS_GEMM_TILE_H_
#define DENOISED_BACKENDS_KERNELS_GEMM_TILE_H_

#include <cstdint>

namespace denoised::kernels {

// Output columns of a panel, whatever the vectors' width: weights are packed alike everywhere.
inline constexpr int kPanelColumns = 32;
// Rows of the tallest register tile: 12 x 32 on AVX-512, twice 6 x 16 on AVX2; on AMX four tile
// registers of 16 x 16.
inline constexpr int kTileRows = 12;
inline constexpr int kAmxTileRows = 32;
inline constexpr int kMostTileRows = 32;
// Units of a row of a tile register: AMX takes so many at a time.
inline constexpr int kAmxUnits = 16;

// One tile: `sums`[height][sum_stride] (+)= rows^T panel over `units`. Sums begin at zero and end
// up added to what stands there (`first`: stored over it); in int8 they are int32.
//
// A unit is 32 bits: a float32, two neighbouring bfloat16, or of int8 two neighbouring words, or
// four neighbouring bytes, of which x's are plus 128.
struct GemmTile {
  const uint32_t* rows;  // [units][height]; on AMX [units / 16][height][16]
  const void* panel;     // [units][kPanelColumns] units, or halves of them where the kernel widens
  int64_t units;         // on AMX a multiple of kAmxUnits
  int height;            // 4, 8 or 12; on AMX 16 or 32
  bool first;
  float* sums;
  int64_t sum_stride;
  // A strip: `runs` times `units` of the panel in one chain, `rows` one row further on in each;
  // units of rows are `row_stride` apart. 0: one run over [units][height]. Not in int8 nor on AMX.
  int runs = 1;
  int64_t row_stride = 0;
  // What will be read soon: beside each unit the line at `soon` is fetched, which moves on by
  // `soon_step` bytes. Null: nothing. AMX leaves it to the processor.
  const char* soon = nullptr;
  int64_t soon_step = 0;
};

enum class Activation : uint8_t { kNone, kGeluTanh, kSilu };

// What becomes of the sums of a tile: + bias, activated, stored in y; or instead, times a gate,
// added to what stands in `add_to`. Pointers are at the first row and column of the tile.
struct GemmFinish {
  const float* sums;  // [rows][kPanelColumns]
  int rows, columns;
  const float* bias;  // or null
  Activation activation;
  void* y;
  bool half;                  // y is bfloat16
  int64_t stride;             // of y and add_to, in elements
  float* add_to;              // or null
  const float* const* gates;  // a row each, or null: ones
};

// `begin` and `end` frame any number of runs on one thread; null where there is nothing to do.
// `run_last` makes results of the sums at once, with the bits of the kernel's finish after `run`;
// of finish.sums, which are tile.sums, nothing is left. Null: run, then finish.
struct GemmTileKernel {
  void (*run)(const GemmTile& tile);
  void (*run_last)(const GemmTile& tile, const GemmFinish& finish) = nullptr;
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
};

void GemmTileAvx2(const GemmTile& tile);       // float32 panels
void GemmTileAvx2Widen(const GemmTile& tile);  // bfloat16 panels, widened in registers
void GemmTileAvx2Int8(const GemmTile& tile);   // byte panels, widened to words in registers
void GemmTileAvx512(const GemmTile& tile);     // as above, wider
void GemmTileAvx512Widen(const GemmTile& tile);
void GemmTileAvx512Int8(const GemmTile& tile);
void GemmTileAvx512Bf16(const GemmTile& tile);  // pairs of bfloat16
void GemmTileVnniInt8(const GemmTile& tile);    // bytes
void LastGemmTileAvx2(const GemmTile& tile, const GemmFinish& finish);
void LastGemmTileAvx2Widen(const GemmTile& tile, const GemmFinish& finish);
void LastGemmTileAvx512(const GemmTile& tile, const GemmFinish& finish);
void LastGemmTileAvx512Widen(const GemmTile& tile, const GemmFinish& finish);
void LastGemmTileAvx512Bf16(const GemmTile& tile, const GemmFinish& finish);
void GemmTileAmxBf16(const GemmTile& tile);  // between BeginAmx and EndAmx
void GemmTileAmxInt8(const GemmTile& tile);
void FinishAvx2(const GemmFinish& finish);
void FinishAvx512(const GemmFinish& finish);
void FinishAvx512Bf16(const GemmFinish& finish);
void BeginAmx();
void EndAmx();

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_GEMM_TILE_H_
