// The tile kernels on AVX-512 (F, DQ, BW, VL): float32 units, and int8 scores from 16-bit words.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx512.h"

struct WordScores : IntegerScores<Float32> {
  static I DotUnits(I acc, F query, F key) {
    return _mm512_add_epi32(
        acc, _mm512_madd_epi16(_mm512_castps_si512(query), _mm512_castps_si512(key)));
  }
};

#include "backends/kernels/tile_impl.h"

}  // namespace

void TileAvx512(const TileJob& job, int width) { RunTile<Float32>(job, width); }

void TileAvx512Int8(const TileJob& job, int width) { RunTile<WordScores>(job, width); }

}  // namespace denoised::kernels
