// What the kernels on mma.sync share: the products of 16-bit elements.
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_MMA_CUH_
#define DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_MMA_CUH_

#include "backends/cuda/block_sparse_tile.cuh"

namespace denoised::cuda {

// c += a b, 16 rows by 8 columns over 16 elements.
inline __device__ void MultiplyAdd(BFloat16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  MultiplyAddBFloat16(c, a, b0, b1);
}
inline __device__ void MultiplyAdd(Float16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  MultiplyAddFloat16(c, a, b0, b1);
}

// out += p v of the tile.
template <class T, int kHead, int kSteps>
__device__ void MultiplyValues(const float (&probs)[kKeyGroups][4], WarpState<kHead, kSteps>* state,
                               uint32_t values, int lane) {
  // Transposed on the way: matrices 0 and 1 are keys 0-7 and 8-15 of 8 elements, 2 and 3 of the
  // next 8.
  const int row = lane & 15, half = lane >> 4;
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) {
    uint32_t a[4];
    PackProbs<T>(a, probs, step);
#pragma unroll
    for (int pair = 0; pair < kHead / 16; ++pair) {
      uint32_t b[4];
      LoadMatricesTransposed(b, values + Tile<kHead>::Offset(step * 16 + row, 2 * pair + half));
      MultiplyAdd(T(), state->out[2 * pair], a, b[0], b[1]);
      MultiplyAdd(T(), state->out[2 * pair + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_MMA_CUH_
