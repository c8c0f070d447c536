// The GEMM tile on AVX-512: float32 sums of float32 products, and int32 ones of words.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/gemm_tile.h"
#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx512.h"

struct FloatPanels : Float32 {
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    return Load(static_cast<const float*>(panel) + unit * kPanelColumns + column);
  }
};

struct HalfPanels : Float32 {
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    const uint16_t* p = static_cast<const uint16_t*>(panel) + unit * kPanelColumns + column;
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
};

#include "backends/kernels/gemm_avx512_int.h"
#include "backends/kernels/gemm_tile_impl.h"

// Two neighbouring words a lane; panels are bytes.
struct WordPanels : Int32 {
  static F MulAdd(F acc, F a, F b) { return Add(acc, _mm512_madd_epi16(a, b)); }
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    const int8_t* p = static_cast<const int8_t*>(panel) + (unit * kPanelColumns + column) * 2;
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
};

#include "backends/kernels/activations_impl.h"
#include "backends/kernels/floats16.h"
#include "backends/kernels/gemm_finish_impl.h"
#include "backends/kernels/gemm_tile_last_impl.h"

}  // namespace

void FinishAvx512(const GemmFinish& finish) { RunFinish<Floats16>(finish); }
void GemmTileAvx512(const GemmTile& tile) { RunGemmTile<FloatPanels, 12>(tile); }
void GemmTileAvx512Widen(const GemmTile& tile) { RunGemmTile<HalfPanels, 12>(tile); }
void LastGemmTileAvx512(const GemmTile& tile, const GemmFinish& finish) {
  RunLastGemmTile<FloatPanels, Floats16, 12>(tile, finish);
}
void LastGemmTileAvx512Widen(const GemmTile& tile, const GemmFinish& finish) {
  RunLastGemmTile<HalfPanels, Floats16, 12>(tile, finish);
}
void GemmTileAvx512Int8(const GemmTile& tile) { RunGemmTile<WordPanels, 12>(tile); }

}  // namespace denoised::kernels
