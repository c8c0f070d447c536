#ifndef DENOISED_TESTS_BACKENDS_GEMM_AMX_EMULATED_H_
#define DENOISED_TESTS_BACKENDS_GEMM_AMX_EMULATED_H_

namespace denoised::kernels {

struct GemmTile;

// The GEMM's AMX kernels with their tile instructions in plain code; AVX-512 does the rest.
void BeginAmxEmulated();
void EndAmxEmulated();
void GemmTileAmxBf16Emulated(const GemmTile& tile);
void GemmTileAmxInt8Emulated(const GemmTile& tile);

}  // namespace denoised::kernels

#endif  // DENOISED_TESTS_BACKENDS_GEMM_AMX_EMULATED_H_
