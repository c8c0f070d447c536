// Block-sparse attention on tensor cores: mma.sync m16n8k16, keys and values double-buffered in
// shared memory by cp.async. Four warps, 16 query rows each; a tile is 64 queries by 64 keys.
#include "backends/cuda/block_sparse_mma.cuh"
#include "backends/cuda/launch.cuh"

namespace denoised::cuda {
namespace {

// scores = q k^T of the tile; a group is 8 keys.
template <class T, int kHead>
__device__ void MultiplyKeys(float (&scores)[kKeyGroups][4], const WarpState<kHead>& state,
                             uint32_t keys, int lane) {
#pragma unroll
  for (auto& group : scores) group[0] = group[1] = group[2] = group[3] = 0;
  // Matrices 0 and 1 are both halves of 16 elements of keys 0-7, 2 and 3 those of keys 8-15.
  const int row = (lane & 7) + ((lane >> 4) << 3), half = (lane >> 3) & 1;
#pragma unroll
  for (int step = 0; step < kHead / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < kKeyGroups / 2; ++pair) {
      uint32_t b[4];
      LoadMatrices(b, keys + Tile<kHead>::Offset(pair * 16 + row, 2 * step + half));
      MultiplyAdd(T(), scores[2 * pair], state.query[step], b[0], b[1]);
      MultiplyAdd(T(), scores[2 * pair + 1], state.query[step], b[2], b[3]);
    }
  }
}

template <class T, int kHead>
__global__ void __launch_bounds__(kThreads, 2)
    BlockSparseHalf(const __grid_constant__ BlockSparseArgs args) {
  const SharedTiles<kHead> tiles(DynamicShared());
  const Walk walk(args);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * kWarpRows + lane / 4;
  const float scale_log2 = args.scale * kLog2E;

  CopyQuery<kHead>(args, walk, tiles);
  CopyEntry<kHead>(args, walk, tiles, 0);  // one group with the queries
  WarpState<kHead> state;
  state.Clear();
  bool odd = false;
  for (int64_t entry = 0; entry < walk.count; ++entry) {
    const Visible visible(args, walk, entry);
    CopyEntry<kHead>(args, walk, tiles, entry + 1);
    WaitForCopies<1>();
    if (visible.HidesRows()) odd |= TakeOutOddValues<T, kHead>(tiles.Values(entry));
    __syncthreads();
    if (entry == 0) state.LoadQuery(tiles.query, warp, lane);
    float scores[kKeyGroups][4];
    MultiplyKeys<T, kHead>(scores, state, tiles.Keys(entry), lane);
    visible.Apply(scores, row, lane);
    float shrink[2];
    UpdateSoftmax<kHead>(scores, &state, scale_log2, shrink);
    ShrinkOut(&state, shrink);
    MultiplyValues<T, kHead>(scores, &state, tiles.Values(entry), lane);
    __syncthreads();  // the next turn copies over these keys and values
  }
  WaitForCopies<0>();
  StoreRows<T, kHead>(args, walk, &state, row, lane, __syncthreads_or(odd));
}

template <class T, int kHead>
cudaError_t Launch(const BlockSparseArgs& args, cudaStream_t stream) {
  return LaunchKernel(BlockSparseHalf<T, kHead>, GridOf(args), kThreads, SharedTiles<kHead>::kBytes,
                      stream, args);
}

}  // namespace

cudaError_t LaunchBlockSparseHalf(const BlockSparseArgs& args, bool bfloat16, cudaStream_t stream) {
  if (args.head_size <= 64) {
    return bfloat16 ? Launch<BFloat16, 64>(args, stream) : Launch<Float16, 64>(args, stream);
  }
  return bfloat16 ? Launch<BFloat16, 128>(args, stream) : Launch<Float16, 128>(args, stream);
}

}  // namespace denoised::cuda
