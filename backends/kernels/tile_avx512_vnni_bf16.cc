// The tile kernel on AVX-512 VNNI and BF16: scores from int8, all else as on AVX-512 BF16.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/tile_impl.h"
#include "backends/kernels/vector_avx512_bf16.h"
#include "backends/kernels/vector_avx512_vnni.h"

}  // namespace

void TileVnniBf16Int8(const TileJob& job, int width) { RunTile<ByteScores<Bfloat16>>(job, width); }

}  // namespace denoised::kernels
