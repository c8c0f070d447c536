// The tile kernel on AVX-512 BF16 (VDPBF16PS) and VNNI (VPDPBUSD): scores from int8, all else as on
// AVX-512 BF16. SageAttention's split (arXiv 2410.02367): 8 bits for q k^T, more for p v.
#include <immintrin.h>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/tile_impl.h"
#include "backends/kernels/vector_avx512_vnni.h"

}  // namespace

void TileAvx512Vnni(const TileJob& job, int width) { RunTileOfWidth<Int8Scores>(job, width); }

}  // namespace denoised::kernels
