// Scores from int8 on AVX-512 VNNI (VPDPBUSD), all else as on AVX-512 BF16. Included inside the
// unnamed namespace of the files that use it.
#include "backends/kernels/vector_avx512_bf16.h"

struct Int8Scores : Bfloat16 {
  using I = __m512i;
  static constexpr bool kInt8 = true;
  static I LoadInts(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F ToFloat(I x) { return _mm512_cvtepi32_ps(x); }
  // By hand: GCC 12 copies the accumulator before and after each of the intrinsic's.
  static I DotBytes(I acc, F query, F key) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(key), "v"(query));
    return acc;
  }
};
