// The GEMM tile on AVX-512 VNNI (VPDPBUSD): units are four bytes, sums are int32.
#include <immintrin.h>

#include "backends/kernels/gemm_tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/gemm_avx512_int.h"
#include "backends/kernels/gemm_tile_impl.h"

struct BytePanels : Int32 {
  // By hand, for the reason that vector_avx512_vnni.h gives.
  static F MulAdd(F acc, F panel, F unit) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unit), "v"(panel));
    return acc;
  }
  static F LoadPanel(const void* panel, int64_t unit, int column) {
    return _mm512_loadu_si512(static_cast<const uint32_t*>(panel) + unit * kPanelColumns + column);
  }
};

}  // namespace

void GemmTileVnniInt8(const GemmTile& tile) { RunGemmTile<BytePanels, 12>(tile); }

}  // namespace denoised::kernels
