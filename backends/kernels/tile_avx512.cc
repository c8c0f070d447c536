// The tile kernel on AVX-512, float32 units.
#include <immintrin.h>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx512.h"

struct Float32 : Vector512 {
  static constexpr bool kPairs = false;
  static constexpr bool kInt8 = false;
  static F MulAdd(F acc, F a, F b) { return _mm512_fmadd_ps(a, b, acc); }
  static F Exp2(F x) { return Exp2Float(x); }
  static void StorePair(F p0, F p1, uint32_t* out, int width) {
    _mm512_storeu_ps(out, p0);
    _mm512_storeu_ps(out + width, p1);
  }
};

#include "backends/kernels/tile_impl.h"

}  // namespace

void TileAvx512(const TileJob& job, int width) { RunTileOfWidth<Float32>(job, width); }

}  // namespace denoised::kernels
