// The GEMM tile on AVX2 and FMA.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "backends/kernels/activations.h"
#include "backends/kernels/gemm_tile.h"
#include "backends/kernels/rounding.h"

namespace denoised::kernels {
namespace {

struct Vector256 {
  using F = __m256;
  static constexpr int kLanes = 8;
  static F Zero() { return _mm256_setzero_ps(); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F MulAdd(F acc, F a, F b) { return _mm256_fmadd_ps(a, b, acc); }
  static F BroadcastUnit(const uint32_t* p) {
    return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(*p)));
  }
};

struct FloatPanels : Vector256 {
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    return Load(static_cast<const float*>(panel) + unit * kPanelColumns + column);
  }
};

struct HalfPanels : Vector256 {
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    const uint16_t* p = static_cast<const uint16_t*>(panel) + unit * kPanelColumns + column;
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
};

// Two neighbouring words a lane; panels are bytes, sums int32.
struct WordPanels {
  using F = __m256i;
  static constexpr int kLanes = 8;
  static F Zero() { return _mm256_setzero_si256(); }
  static F Load(const float* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void Store(float* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static F Add(F a, F b) { return _mm256_add_epi32(a, b); }
  static F MulAdd(F acc, F a, F b) { return Add(acc, _mm256_madd_epi16(a, b)); }
  static F BroadcastUnit(const uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    const int8_t* p = static_cast<const int8_t*>(panel) + (unit * kPanelColumns + column) * 2;
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
};

// Of the lanes the first `left` are there; the others are zeros.
struct SomeOfEight : Floats8 {
  static F Load(const float* p, int left) { return LoadSome(p, left); }
  template <typename T>
  static void Store(T* p, int left, F x) {
    StoreSome(p, left, x);
  }
};

#include "backends/kernels/gemm_finish_impl.h"
#include "backends/kernels/gemm_tile_impl.h"
#include "backends/kernels/gemm_tile_last_impl.h"

}  // namespace

void FinishAvx2(const GemmFinish& finish) { RunFinish<SomeOfEight>(finish); }

void GemmTileAvx2(const GemmTile& tile) { RunGemmTile<FloatPanels, 6>(tile); }
void GemmTileAvx2Widen(const GemmTile& tile) { RunGemmTile<HalfPanels, 6>(tile); }
void LastGemmTileAvx2(const GemmTile& tile, const GemmFinish& finish) {
  RunLastGemmTile<FloatPanels, SomeOfEight, 6>(tile, finish);
}
void LastGemmTileAvx2Widen(const GemmTile& tile, const GemmFinish& finish) {
  RunLastGemmTile<HalfPanels, SomeOfEight, 6>(tile, finish);
}
void GemmTileAvx2Int8(const GemmTile& tile) { RunGemmTile<WordPanels, 6>(tile); }

}  // namespace denoised::kernels
