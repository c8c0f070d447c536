#ifndef DENOISED_TESTS_BACKENDS_TILE_AMX_EMULATED_H_
#define DENOISED_TESTS_BACKENDS_TILE_AMX_EMULATED_H_

namespace denoised::kernels {

struct TileJob;

// The AMX kernels with their tile instructions in plain code; AVX-512 BF16 does the rest.
void TileAmxEmulated(const TileJob& job, int width);
void TileAmxInt8Emulated(const TileJob& job, int width);

}  // namespace denoised::kernels

#endif  // DENOISED_TESTS_BACKENDS_TILE_AMX_EMULATED_H_
