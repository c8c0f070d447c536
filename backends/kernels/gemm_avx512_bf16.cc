// The GEMM tile on AVX-512 BF16 (VDPBF16PS): units are pairs of bfloat16, sums are float32.
#include <immintrin.h>

#include <type_traits>

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

// Rounded by one instruction, which takes denormal numbers as zeros, as VDPBF16PS does.
#include "backends/kernels/floats16.h"
struct Floats16Bf16 : Floats16 {
  using Floats16::Store;
  static void Store(uint16_t* p, int left, F x) {
    _mm256_mask_storeu_epi16(p, Lanes(left), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
  static void StoreHalves(uint16_t* p, F low, F high) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
};

#include "backends/kernels/activations_impl.h"
#include "backends/kernels/gemm_finish_impl.h"
#include "backends/kernels/gemm_tile_impl.h"
#include "backends/kernels/gemm_tile_last_impl.h"

}  // namespace

void FinishAvx512Bf16(const GemmFinish& finish) { RunFinish<Floats16Bf16>(finish); }
void GemmTileAvx512Bf16(const GemmTile& tile) { RunGemmTile<PairPanels, 12>(tile); }
void LastGemmTileAvx512Bf16(const GemmTile& tile, const GemmFinish& finish) {
  RunLastGemmTile<PairPanels, Floats16Bf16, 12>(tile, finish);
}

}  // namespace denoised::kernels
