// Block-sparse attention for compute capability 9.0: as block_sparse_half.cu, with wgmma for both
// products. The four warps are one warpgroup of 64 query rows; keys and values are read by the
// tensor cores from shared memory through descriptors, without passing registers. Two thread blocks
// share a multiprocessor: one multiplies while the other computes its softmax.
//
// Descriptors follow the PTX ISA, section "Asynchronous warpgroup level matrix shared memory
// layout", 128-byte swizzle: in 16-byte units, bits 0-13 the address, 16-29 the leading and 32-45
// the stride offset, 62-63 the swizzle. Keys are K-major: rows of 8 keys are 1024 bytes apart, a
// step of 16 elements is 32 bytes further in its panel. Values are transposed: groups of 8 keys are
// 1024 bytes apart, a step of 16 keys 2048; a product takes one panel of 64 elements.
#include "backends/cuda/block_sparse_tile.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/ptx_hopper.cuh"

namespace denoised::cuda {
namespace {

constexpr int kHead = kMaxHeadSize;
constexpr int kPanels = kHead / 64;
constexpr int kPanelBytes = Tile<kHead>::kPanelBytes;

// Of what is K-major the leading offset is not looked at; CUTLASS writes 1.
constexpr uint64_t kNoLeading = 1;

__device__ uint64_t Descriptor(uint32_t address, uint64_t leading) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return (static_cast<uint64_t>(address) & 0x3ffff) / 16 | leading << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

// d = a b, plus d where kAccumulate: 64 rows by 64 columns over 16 elements, b in shared memory.
// Asynchronous: d and a must not be touched until WaitForProducts.
template <int kTransposed, int kAccumulate>
__forceinline__ __device__ void MultiplyAdd(BFloat16, float (*d)[4], const uint32_t (&a)[4],
                                            uint64_t b) {
  BeginBFloat16Product<kTransposed, kAccumulate>(d, a, b);
}
template <int kTransposed, int kAccumulate>
__forceinline__ __device__ void MultiplyAdd(Float16, float (*d)[4], const uint32_t (&a)[4],
                                            uint64_t b) {
  BeginFloat16Product<kTransposed, kAccumulate>(d, a, b);
}

// Until WaitForProducts neither scores nor the query may be touched.
template <class T>
__forceinline__ __device__ void BeginKeys(float (&scores)[kKeyGroups][4],
                                          const WarpState<kHead>& state, uint32_t keys) {
#pragma unroll
  for (int i = 0; i < 4 * kKeyGroups; ++i) scores[i / 4][i % 4] = 0;
  BeginProducts();
  // The first does not read the sums, so that nothing hangs on when the zeros above are written.
  MultiplyAdd<0, 0>(T(), scores, state.query[0], Descriptor(keys, kNoLeading));
#pragma unroll
  for (int step = 1; step < kHead / 16; ++step) {
    MultiplyAdd<0, 1>(T(), scores, state.query[step],
                      Descriptor(keys + step / 4 * kPanelBytes + step % 4 * 32, kNoLeading));
  }
  EndProducts();
}

using Probs = uint32_t[kTile / 16][4];

// Until WaitForProducts neither probs nor state->out may be touched.
template <class T>
__forceinline__ __device__ void BeginValues(const Probs& probs, WarpState<kHead>* state,
                                            uint32_t values) {
  BeginProducts();
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      MultiplyAdd<1, 1>(T(), state->out + 8 * panel, probs[step],
                        Descriptor(values + panel * kPanelBytes + step * 2048, kPanelBytes / 16));
    }
  }
  EndProducts();
}

// Where the tiles lie: the queries, which leave for registers at once, in the room of the second
// values.
struct HopperTiles {
  static constexpr int kBytes = Tile<kHead>::kBytes * 2 * kStages + kTileAlignment;
  uint32_t first;
  __device__ explicit HopperTiles(const void* memory) {
    const uint32_t start = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    first = (start + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
  }
  __device__ uint32_t Keys(int64_t entry) const {
    return first + static_cast<uint32_t>(entry % kStages) * Tile<kHead>::kBytes;
  }
  __device__ uint32_t Values(int64_t entry) const {
    return Keys(entry) + kStages * Tile<kHead>::kBytes;
  }
  __device__ uint32_t Query() const { return Values(1); }
};

// Starts copying the rows of an entry's keys or values; past the last entry nothing.
__forceinline__ __device__ void CopyBlock(const BlockSparseArgs& args, const Walk& walk,
                                          const DeviceView& view, int64_t entry, uint32_t target) {
  if (entry >= walk.count) return;
  const int block = walk.KeyBlock(args.plan, entry);
  CopyRows<kHead>(target, view, walk.OffsetIn(view),
                  CopyShare<kHead>(args.plan.key_tokens + int64_t{block} * kTile), args.head_size);
}

template <class T>
__forceinline__ __device__ void Pack(const float (&scores)[kKeyGroups][4], Probs& probs) {
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) PackProbs<T>(probs[step], scores, step);
  Settle(probs);
}

// Waits until an entry's values, and the keys of the next one, have arrived for all threads; the
// tiles before them are free then. Whether values were not finite and have been taken out.
template <class T>
__forceinline__ __device__ bool Arrive(const BlockSparseArgs& args, const Walk& walk,
                                       const HopperTiles& tiles, int64_t entry) {
  bool odd = false;
  WaitForCopies<0>();
  if (walk.RowMask(args.plan, entry) != ~uint64_t{0}) {
    odd = TakeOutOddValues<T, kHead>(tiles.Values(entry));
  }
  PublishCopies();
  __syncthreads();
  return odd;
}

// A stage ahead of itself: while the tensor cores multiply the values of an entry, its threads
// compute the softmax of the next one.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    BlockSparseHopper(const __grid_constant__ BlockSparseArgs args) {
  const HopperTiles tiles(DynamicShared());
  const Walk walk(args);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * kWarpRows + lane / 4;
  const float scale_log2 = args.scale * kLog2E;
  WarpState<kHead> state;
  state.Clear();
  bool odd = false;
  if (walk.count > 0) {
    CopyRows<kHead>(tiles.Query(), args.query, walk.OffsetIn(args.query),
                    CopyShare<kHead>(args.plan.query_tokens + int64_t{walk.query_block} * kTile),
                    args.head_size);
    CopyBlock(args, walk, args.key, 0, tiles.Keys(0));
    CommitCopies();
    CopyBlock(args, walk, args.value, 0, tiles.Values(0));
    CopyBlock(args, walk, args.key, 1, tiles.Keys(1));
    CommitCopies();
    float scores[kKeyGroups][4], shrink[2];
    Probs probs;
    WaitForCopies<1>();
    PublishCopies();
    __syncthreads();
    state.LoadQuery(tiles.Query(), warp, lane);
    BeginKeys<T>(scores, state, tiles.Keys(0));
    WaitForProducts<0>();
    Settle(scores);
    Visible(args, walk, 0).Apply(scores, row, lane);
    UpdateSoftmax<kHead>(scores, &state, scale_log2, shrink);
    Pack<T>(scores, probs);
    for (int64_t entry = 0; entry + 1 < walk.count; ++entry) {
      const Visible next(args, walk, entry + 1);
      odd |= Arrive<T>(args, walk, tiles, entry);
      CopyBlock(args, walk, args.value, entry + 1, tiles.Values(entry + 1));
      CopyBlock(args, walk, args.key, entry + 2, tiles.Keys(entry + 2));
      CommitCopies();
      Settle(state.out);
      BeginKeys<T>(scores, state, tiles.Keys(entry + 1));
      BeginValues<T>(probs, &state, tiles.Values(entry));
      WaitForProducts<1>();
      Settle(scores);
      next.Apply(scores, row, lane);
      UpdateSoftmax<kHead>(scores, &state, scale_log2, shrink);
      WaitForProducts<0>();
      Settle(state.out);
      ShrinkOut(&state, shrink);
      Pack<T>(scores, probs);
    }
    odd |= Arrive<T>(args, walk, tiles, walk.count - 1);
    Settle(state.out);
    BeginValues<T>(probs, &state, tiles.Values(walk.count - 1));
    WaitForProducts<0>();
    Settle(state.out);
  }
  StoreRows<T, kHead>(args, walk, &state, row, lane, __syncthreads_or(odd));
}

template <class T>
cudaError_t Launch(const BlockSparseArgs& args, cudaStream_t stream) {
  return LaunchKernel(BlockSparseHopper<T>, GridOf(args), kThreads, HopperTiles::kBytes, stream,
                      args);
}

}  // namespace

cudaError_t LaunchBlockSparseHopper(const BlockSparseArgs& args, bool bfloat16,
                                    cudaStream_t stream) {
  return bfloat16 ? Launch<BFloat16>(args, stream) : Launch<Float16>(args, stream);
}

}  // namespace denoised::cuda
