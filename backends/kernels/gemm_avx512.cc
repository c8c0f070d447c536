// The GEMM tile on AVX-512: float32 sums of float32 products, and int32 ones of words.
#include <immintrin.h>

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

// Sixteen floats, the first `left` of which are there; the others are zeros.
struct Floats16 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F MulAdd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F NegativeMulAdd(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F Round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F PowerOfTwo(F whole) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static F ZeroWhereAbove(F y, F most, F ratio, F x) {
    const F zero = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
    return _mm512_mask_mov_ps(ratio, _mm512_cmp_ps_mask(y, most, _CMP_GT_OQ), zero);
  }

  static __mmask16 Lanes(int left) {
    return static_cast<__mmask16>(left >= kLanes ? 0xffff : (1 << left) - 1);
  }
  static F Load(const float* p, int left) { return _mm512_maskz_loadu_ps(Lanes(left), p); }
  static void Store(float* p, int left, F x) { _mm512_mask_storeu_ps(p, Lanes(left), x); }
  // As StoreEight of rounding.h.
  static void Store(uint16_t* p, int left, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i words =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                              _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(p, Lanes(left), _mm512_cvtepi32_epi16(words));
  }
};

#include "backends/kernels/activations_impl.h"
#include "backends/kernels/gemm_finish_impl.h"

}  // namespace

void FinishAvx512(const GemmFinish& finish) { RunFinish<Floats16>(finish); }
void GemmTileAvx512(const GemmTile& tile) { RunGemmTile<FloatPanels, 12>(tile); }
void GemmTileAvx512Widen(const GemmTile& tile) { RunGemmTile<HalfPanels, 12>(tile); }
void GemmTileAvx512Int8(const GemmTile& tile) { RunGemmTile<WordPanels, 12>(tile); }

}  // namespace denoised::kernels
