// The GEMM's AMX tiles over tiles in memory, so that their indices are tested where there is no
// AMX. Nothing but the kernel may be in this file: it is compiled for AVX-512 BF16 and VNNI.
#include "tests/backends/gemm_amx_emulated.h"

#include <immintrin.h>

#include <cstring>

#include "backends/kernels/gemm_tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/gemm_amx_impl.h"
#include "tests/backends/amx_tiles_emulated.h"

}  // namespace

void BeginAmxEmulated() { EmulatedTiles::Start(); }
void EndAmxEmulated() { EmulatedTiles::End(); }
void GemmTileAmxBf16Emulated(const GemmTile& tile) { RunAmxGemmTile<EmulatedTiles, false>(tile); }
void GemmTileAmxInt8Emulated(const GemmTile& tile) { RunAmxGemmTile<EmulatedTiles, true>(tile); }

}  // namespace denoised::kernels
