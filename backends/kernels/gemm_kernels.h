// The one table of how weights are held and multiplied: the driver (gemm.cc) and the packing
// (gemm_pack.h) know no instruction set, and no other kind of weights, but by a row of it.
//
// One more kind, of fewer bits (fp8, blocks with a scale each): a GemmUnits that says what is
// packed, if none fits; its packing in gemm_pack.cc; a tile that reads its panels; a row here, and
// whatever scales its sums lack beside those of int8 in gemm_pack.cc's ScaleSums.
#ifndef DENOISED_BACKENDS_KERNELS_GEMM_KERNELS_H_
#define DENOISED_BACKENDS_KERNELS_GEMM_KERNELS_H_

#include <cstdint>

#include "backends/kernels/gemm.h"
#include "backends/kernels/gemm_tile.h"

namespace denoised::kernels {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class GemmUnits : uint8_t {
  kFloats,  // a number; panels of bfloat16 stay bfloat16
  kPairs,   // two neighbouring bfloat16
  kWords,   // two neighbouring int8 as words; in panels as bytes
  kBytes,   // four neighbouring int8
};

struct GemmKernel {
  GemmIsa isa;
  const char* name;
  bool (*has)(const DeviceInfo& cpu);
  GemmUnits units;
  GemmTileKernel tile;
  GemmTileKernel half_tile;                  // panels of bfloat16, where float32 has other ones
  void (*finish)(const GemmFinish& finish);  // the same bits whichever it is, of normal numbers
  bool amx = false;

  bool int8() const { return units == GemmUnits::kWords || units == GemmUnits::kBytes; }
  int tile_rows() const { return amx ? kAmxTileRows : kTileRows; }
  int row_step() const { return amx ? kAmxTileRows / 2 : 4; }  // a tile's height is a multiple
  // So many are summed from zero before they are added to the rest. Longer pieces take less time,
  // and err less than bfloat16 results are rounded; those of int8 are exact.
  int64_t piece_units() const { return units == GemmUnits::kFloats ? 256 : 512; }
  int64_t numbers_a_unit() const {
    return units == GemmUnits::kFloats ? 1 : units == GemmUnits::kBytes ? 4 : 2;
  }
  // Of a row of K numbers.
  int64_t Units(int64_t k) const {
    const int64_t multiple = amx ? kAmxUnits : 1, per = numbers_a_unit() * multiple;
    return CeilDiv(k, per) * multiple;
  }
  // Bytes of a panel's unit of one column.
  int64_t PanelUnitBytes(Element element) const {
    const bool half = units == GemmUnits::kFloats && element == Element::kBFloat16;
    return half || units == GemmUnits::kWords ? 2 : 4;
  }
};

const GemmKernel& KernelOf(GemmIsa isa);
// The tile that reads these panels.
const GemmTileKernel& GemmKernelOf(const WeightPanels& weight);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_GEMM_KERNELS_H_
