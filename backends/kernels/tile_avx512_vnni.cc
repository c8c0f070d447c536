// The tile kernel on AVX-512 VNNI without BF16: scores from int8, all else in float32.
// SageAttention's split (arXiv 2410.02367): 8 bits for q k^T, more for p v.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/tile_impl.h"
#include "backends/kernels/vector_avx512.h"
#include "backends/kernels/vector_avx512_vnni.h"

}  // namespace

void TileVnniInt8(const TileJob& job, int width) { RunTile<ByteScores<Float32>>(job, width); }

}  // namespace denoised::kernels
