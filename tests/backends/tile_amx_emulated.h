#ifndef DENOISED_TESTS_BACKENDS_TILE_AMX_EMULATED_H_
#define DENOISED_TESTS_BACKENDS_TILE_AMX_EMULATED_H_

namespace denoised::kernels {

struct TileJob;

// The AMX kernel with its tile instructions in plain code; needs AVX-512 BF16 for the rest.
void TileAmxEmulated(const TileJob& job, int width);

}  // namespace denoised::kernels

#endif  // DENOISED_TESTS_BACKENDS_TILE_AMX_EMULATED_H_
