// Pairs of bfloat16 on AVX-512 BF16 (VDPBF16PS). Included inside the unnamed namespace of the files
// that use it.
#include "backends/kernels/vector_avx512.h"

struct Bfloat16 : Vector512 {
  static constexpr bool kPairs = true;
  static constexpr bool kInt8 = false;
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
