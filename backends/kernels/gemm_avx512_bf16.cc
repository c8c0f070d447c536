// The GEMM tile on AVX-512 BF16 (VDPBF16PS): units are pairs of bfloat16, sums are float32.
#include <immintrin.h>

#include "backends/kernels/gemm_tile.h"
#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx512_bf16.h"

struct PairPanels : Bfloat16 {
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    return LoadUnits(static_cast<const uint32_t*>(panel) + unit * kPanelColumns + column);
  }
};

#include "backends/kernels/gemm_tile_impl.h"

}  // namespace

void GemmTileAvx512Bf16(const GemmTile& tile) { RunGemmTile<PairPanels, 12>(tile); }

}  // namespace denoised::kernels
