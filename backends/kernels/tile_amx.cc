// The tile kernels on AMX (TDPBF16PS, TDPBUSD). Where there is none, tests run the same code over
// emulated tiles.
#include <immintrin.h>

#include <type_traits>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/amx_tiles.h"
#include "backends/kernels/tile_impl.h"
#include "backends/kernels/vector_amx.h"

}  // namespace

void TileAmxBf16(const TileJob& job, int width) {
  RunTile<TileProducts<ProcessorTiles, Bfloat16>>(job, width);
}

void TileAmxInt8(const TileJob& job, int width) {
  RunTile<TileProducts<ProcessorTiles, ByteScores<Bfloat16>>>(job, width);
}

}  // namespace denoised::kernels
