// Block-sparse attention with scores from int8: mma.sync m16n8k32, then as block_sparse_half.cu.
//
// By bytes the fragments of m16n8k32 are those of m16n8k16: an int8 row is copied and loaded like a
// row of half as many 16-bit elements. Key scales travel with their tile.
#include "backends/cuda/block_sparse_int8_cuda.h"
#include "backends/cuda/block_sparse_mma.cuh"
#include "backends/cuda/launch.cuh"

namespace denoised::cuda {
namespace {

constexpr int kPairs = 64;  // room of an int8 tile, in pairs of bytes: heads of up to 128
using Int8Tile = Tile<kPairs>;

// Where the tiles lie in the dynamic shared memory of a thread block.
template <int kHead>
struct Int8SharedTiles {
  static constexpr int kStageBytes = Int8Tile::kBytes + Tile<kHead>::kBytes + kTileAlignment;
  static constexpr int kBytes = Int8Tile::kBytes + kStages * kStageBytes + kTileAlignment;
  static_assert(kTile * sizeof(float) <= kTileAlignment);
  uint32_t query, stages;
  __device__ explicit Int8SharedTiles(const void* memory) {
    const uint32_t start = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    query = (start + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
    stages = query + Int8Tile::kBytes;
  }
  __device__ uint32_t Keys(int64_t entry) const {
    return stages + static_cast<uint32_t>(entry % kStages) * kStageBytes;
  }
  __device__ uint32_t Values(int64_t entry) const { return Keys(entry) + Int8Tile::kBytes; }
  __device__ uint32_t Scales(int64_t entry) const { return Values(entry) + Tile<kHead>::kBytes; }
};

// First token's scale of the thread block's head.
__device__ const float* ScalesOf(const BlockSparseArgs& args, const Walk& walk, const float* scales,
                                 int length) {
  return scales + (int64_t{walk.batch} * args.heads + walk.head) * length;
}

// Starts copying the queries; no group of its own yet.
template <int kHead>
__device__ void CopyInt8Query(const BlockSparseArgs& args, const Walk& walk, uint32_t target) {
  const CopyShare<kPairs> share(args.plan.query_tokens + int64_t{walk.query_block} * kTile);
  CopyRows<kPairs>(target, args.query, walk.OffsetIn(args.query), share, kHead / 2);
}

// Starts copying the keys, their scales and the values of an entry, as one group; past the last
// entry an empty one.
template <int kHead>
__device__ void CopyInt8Entry(const BlockSparseInt8Args& all, const Walk& walk,
                              const Int8SharedTiles<kHead>& tiles, int64_t entry) {
  if (entry < walk.count) {
    const BlockSparseArgs& args = all.call;
    const int32_t* tokens = args.plan.key_tokens + int64_t{walk.KeyBlock(args.plan, entry)} * kTile;
    CopyRows<kPairs>(tiles.Keys(entry), args.key, walk.OffsetIn(args.key),
                     CopyShare<kPairs>(tokens), kHead / 2);
    CopyRows<kHead>(tiles.Values(entry), args.value, walk.OffsetIn(args.value),
                    CopyShare<kHead>(tokens), args.head_size);
    const int key = static_cast<int>(threadIdx.x);
    if (key < kTile) {
      const int token = __ldg(tokens + key);
      const float* scales = ScalesOf(args, walk, all.key_scale, all.kv_len);
      CopyFloatAsync(tiles.Scales(entry) + static_cast<uint32_t>(key) * 4, scales + max(token, 0),
                     token >= 0);
    }
  }
  CommitCopies();
}

template <int kHead>
using Int8State = WarpState<kHead, kHead / 32>;

// What a byte of a warp's queries is worth: of rows g and g + 8.
struct QueryScales {
  float row[2];

  __device__ QueryScales(const BlockSparseInt8Args& all, const Walk& walk, int first) {
    const int32_t* tokens = all.call.plan.query_tokens + int64_t{walk.query_block} * kTile;
    const float* scales = ScalesOf(all.call, walk, all.query_scale, all.call.q_len);
#pragma unroll
    for (int half = 0; half < 2; ++half) row[half] = scales[max(tokens[first + 8 * half], 0)];
  }
};

// sums = q k^T of the tile in bytes; a group is 8 keys.
template <int kHead>
__device__ void MultiplyInt8Keys(int32_t (&sums)[kKeyGroups][4], const Int8State<kHead>& state,
                                 uint32_t keys, int lane) {
#pragma unroll
  for (auto& group : sums) group[0] = group[1] = group[2] = group[3] = 0;
  // Matrices 0 and 1 are both halves of 32 bytes of keys 0-7, 2 and 3 those of keys 8-15.
  const int row = (lane & 7) + ((lane >> 4) << 3), half = (lane >> 3) & 1;
#pragma unroll
  for (int step = 0; step < kHead / 32; ++step) {
#pragma unroll
    for (int pair = 0; pair < kKeyGroups / 2; ++pair) {
      uint32_t b[4];
      LoadMatrices(b, keys + Int8Tile::Offset(pair * 16 + row, 2 * step + half));
      MultiplyAddInt8(sums[2 * pair], state.query[step], b[0], b[1]);
      MultiplyAddInt8(sums[2 * pair + 1], state.query[step], b[2], b[3]);
    }
  }
}

// Sums of products of bytes, below 2^24 and so exact in float32, in units of q and k.
inline __device__ void ScaleScores(float (&scores)[kKeyGroups][4],
                                   const int32_t (&sums)[kKeyGroups][4], const QueryScales& query,
                                   uint32_t key_scales, int lane) {
  const float2* scales = static_cast<const float2*>(__cvta_shared_to_generic(key_scales));
#pragma unroll
  for (int group = 0; group < kKeyGroups; ++group) {
    const float2 key = scales[group * 4 + (lane & 3)];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* score = scores[group] + 2 * half;
      const int32_t* sum = sums[group] + 2 * half;
      score[0] = static_cast<float>(sum[0]) * (query.row[half] * key.x);
      score[1] = static_cast<float>(sum[1]) * (query.row[half] * key.y);
    }
  }
}

template <class T, int kHead>
__global__ void __launch_bounds__(kThreads, 2)
    BlockSparseInt8(const __grid_constant__ BlockSparseInt8Args all) {
  const BlockSparseArgs& args = all.call;
  const Int8SharedTiles<kHead> tiles(DynamicShared());
  const Walk walk(args);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * kWarpRows + lane / 4;
  const float scale_log2 = args.scale * kLog2E;

  CopyInt8Query<kHead>(args, walk, tiles.query);
  CopyInt8Entry<kHead>(all, walk, tiles, 0);  // one group with the queries
  const QueryScales query_scales(all, walk, row);
  Int8State<kHead> state;
  state.Clear();
  bool odd = false;
  for (int64_t entry = 0; entry < walk.count; ++entry) {
    const Visible visible(args, walk, entry);
    CopyInt8Entry<kHead>(all, walk, tiles, entry + 1);
    WaitForCopies<1>();
    if (visible.HidesRows()) odd |= TakeOutOddValues<T, kHead>(tiles.Values(entry));
    __syncthreads();
    if (entry == 0) state.LoadQuery(tiles.query, warp, lane);
    int32_t sums[kKeyGroups][4];
    MultiplyInt8Keys<kHead>(sums, state, tiles.Keys(entry), lane);
    float scores[kKeyGroups][4];
    ScaleScores(scores, sums, query_scales, tiles.Scales(entry), lane);
    visible.Apply(scores, row, lane);
    float shrink[2];
    UpdateSoftmax<kHead>(scores, &state, scale_log2, shrink);
    ShrinkOut(&state, shrink);
    MultiplyValues<T, kHead>(scores, &state, tiles.Values(entry), lane);
    __syncthreads();  // the next turn copies over this entry
  }
  WaitForCopies<0>();
  StoreRows<T, kHead>(args, walk, &state, row, lane, __syncthreads_or(odd));
}

template <class T, int kHead>
cudaError_t Launch(const BlockSparseInt8Args& args, cudaStream_t stream) {
  return LaunchKernel(BlockSparseInt8<T, kHead>, GridOf(args.call), kThreads,
                      Int8SharedTiles<kHead>::kBytes, stream, args);
}

}  // namespace

cudaError_t LaunchBlockSparseInt8(const BlockSparseInt8Args& args, bool bfloat16,
                                  cudaStream_t stream) {
  if (Int8RowBytes(args.call.head_size) == 64) {
    return bfloat16 ? Launch<BFloat16, 64>(args, stream) : Launch<Float16, 64>(args, stream);
  }
  return bfloat16 ? Launch<BFloat16, 128>(args, stream) : Launch<Float16, 128>(args, stream);
}

}  // namespace denoised::cuda
