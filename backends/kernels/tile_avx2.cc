// The tile kernels on AVX2 and FMA, the floor that every machine has: float32 units, and int8
// scores from 16-bit words.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_avx2.h"

struct WordScores : Float32 {
  using I = __m256i;
  static constexpr int kScoreColumns = 2;  // a product of words takes a register more
  static constexpr bool kInt8 = true;
  static I LoadInts(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static F ToFloat(I x) { return _mm256_cvtepi32_ps(x); }
  static I DotUnits(I acc, F query, F key) {
    return _mm256_add_epi32(
        acc, _mm256_madd_epi16(_mm256_castps_si256(query), _mm256_castps_si256(key)));
  }
};

#include "backends/kernels/tile_impl.h"

}  // namespace

void TileAvx2(const TileJob& job, int width) { RunTile<Float32>(job, width); }

void TileAvx2Int8(const TileJob& job, int width) { RunTile<WordScores>(job, width); }

}  // namespace denoised::kernels
