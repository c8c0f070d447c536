// The tile kernel on AVX-512 BF16 (VDPBF16PS) and VNNI (VPDPBUSD): scores from int8, all else as on
// AVX-512 BF16. SageAttention's split (arXiv 2410.02367): 8 bits for q k^T, more for p v.
#include <immintrin.h>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx512.h"

struct Int8Scores : Vector512 {
  using I = __m512i;
  static constexpr bool kPairs = true;
  static constexpr bool kInt8 = true;
  static I LoadInts(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F ToFloat(I x) { return _mm512_cvtepi32_ps(x); }
  // By hand: GCC 12 copies the accumulator before and after each of the intrinsic's.
  static I DotBytes(I acc, F query, F key) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(key), "v"(query));
    return acc;
  }
  static F MulAdd(F acc, F a, F b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  // The result is rounded to 8 bits of mantissa: a shorter polynomial is enough.
  static F Exp2(F x) { return Exp2Short(x); }
  static void StorePair(F p0, F p1, uint32_t* out, int /*width*/) {
    const __m512i interleave =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p1, p0));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(interleave, both));
  }
};

#include "backends/kernels/tile_impl.h"

}  // namespace

void TileAvx512Vnni(const TileJob& job, int width) { RunTileOfWidth<Int8Scores>(job, width); }

}  // namespace denoised::kernels
