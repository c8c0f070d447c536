// The tile kernel on AVX-512 BF16 (VDPBF16PS): units are pairs of bfloat16, sums are float32.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/tile_impl.h"
#include "backends/kernels/vector_avx512_bf16.h"

}  // namespace

void TileAvx512Bf16(const TileJob& job, int width) { RunTile<Bfloat16>(job, width); }

}  // namespace denoised::kernels
