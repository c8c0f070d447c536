// The AMX tile kernel over tiles in memory, so that its indices are tested where there is no AMX.
// Nothing but the kernel may be in this file: it is compiled for AVX-512 BF16 and VNNI.
#include "tests/backends/tile_amx_emulated.h"

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/tile_impl.h"
#include "backends/kernels/vector_amx.h"
#include "tests/backends/amx_tiles_emulated.h"

}  // namespace

void TileAmxEmulated(const TileJob& job, int width) {
  RunTile<TileProducts<EmulatedTiles, Bfloat16>>(job, width);
}

void TileAmxInt8Emulated(const TileJob& job, int width) {
  RunTile<TileProducts<EmulatedTiles, ByteScores<Bfloat16>>>(job, width);
}

}  // namespace denoised::kernels
