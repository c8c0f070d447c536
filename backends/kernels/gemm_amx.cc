// The GEMM tiles on AMX (TDPBF16PS, TDPBUSD): measured on a Xeon with AMX; where there is none,
// tests run the same code over emulated registers.
#include <immintrin.h>

#include "backends/kernels/gemm_tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/amx_tiles.h"
#include "backends/kernels/gemm_amx_impl.h"

}  // namespace

void BeginAmx() { ProcessorTiles::Start(); }
void EndAmx() { ProcessorTiles::End(); }
void GemmTileAmxBf16(const GemmTile& tile) { RunAmxGemmTile<ProcessorTiles, false>(tile); }
void GemmTileAmxInt8(const GemmTile& tile) { RunAmxGemmTile<ProcessorTiles, true>(tile); }

}  // namespace denoised::kernels
