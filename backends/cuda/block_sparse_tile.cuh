// What the two tensor-core kernels share: tiles in shared memory and how they fill, the fragments
// of 16 query rows that a warp keeps, the online softmax, the store. Only the two products differ.
//
// Fragments are as the PTX ISA lays them out, for mma.m16n8k16 and for each warp of wgmma alike:
// with g = lane / 4 and t = lane % 4 a thread holds, of 16 rows by 8 columns, columns 2t and 2t + 1
// of rows g and g + 8. Two neighbouring groups of scores are, rounded, the left operand of the
// product with 16 values: probabilities never leave the registers.
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_TILE_CUH_
#define DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_TILE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <limits>

#include "backends/cuda/block_sparse_walk.cuh"
#include "backends/cuda/ptx.cuh"

namespace denoised::cuda {

inline constexpr int kWarps = 4, kThreads = 32 * kWarps;
inline constexpr int kTile = kernels::kBlock;     // queries and keys of a tile
inline constexpr int kWarpRows = kTile / kWarps;  // 16, the rows of one mma
inline constexpr int kChunkElements = 8;          // 16 bytes
inline constexpr int kKeyGroups = kTile / 8;      // accumulators of scores, 8 keys wide
inline constexpr int kStages = 2;
inline constexpr int kTileAlignment = 1024;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr unsigned kWholeWarp = 0xffffffffu;

// A tile in shared memory: panels of 64 elements, in them rows of eight 16-byte chunks. Chunks
// change places with the row, so that eight rows that are read together lie in different banks;
// this is the 128-byte swizzle of wgmma's descriptors too, which wants tiles at multiples of
// kTileAlignment.
template <int kHead>
struct Tile {
  static constexpr int kChunks = kHead / kChunkElements;
  static constexpr int kPanelBytes = kTile * 128;
  static constexpr int kBytes = kHead / 64 * kPanelBytes;
  static __device__ uint32_t Offset(int row, int chunk) {
    return static_cast<uint32_t>(chunk / 8 * kPanelBytes + row * 128 +
                                 ((chunk & 7) ^ (row & 7)) * 16);
  }
};

// The two dtypes: the rounding of pairs, the first of a pair in the low half.
struct BFloat16 {
  using Stored = uint16_t;
  static constexpr uint32_t kExponent = 0x7f80;  // all of it set: not finite
  static __device__ float Widen(Stored bits) { return __uint_as_float(uint32_t{bits} << 16); }
  static __device__ Stored Narrow(float x) { return static_cast<Stored>(Pack(x, 0)); }
  static __device__ uint32_t Pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

struct Float16 {
  using Stored = uint16_t;
  static constexpr uint32_t kExponent = 0x7c00;
  static __device__ float Widen(Stored bits) { return __half2float(__ushort_as_half(bits)); }
  static __device__ Stored Narrow(float x) { return static_cast<Stored>(Pack(x, 0)); }
  static __device__ uint32_t Pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

// How the threads share the rows of a tile when it is copied: each takes one chunk of every
// kPassRows-th row, whose place in the row does not change from pass to pass.
template <int kHead>
struct CopyShare {
  static constexpr int kPassRows = kThreads / Tile<kHead>::kChunks;
  static constexpr int kPasses = kTile / kPassRows;
  static_assert(kPassRows % 8 == 0);
  int tokens[kPasses];  // -1 past the end of the block
  int row = static_cast<int>(threadIdx.x) / Tile<kHead>::kChunks;
  int chunk = static_cast<int>(threadIdx.x) % Tile<kHead>::kChunks;

  __forceinline__ __device__ explicit CopyShare(const int32_t* block) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) tokens[pass] = __ldg(block + row + pass * kPassRows);
  }
};

// Starts copying the rows of one block of tokens; rows past its end and columns past the head size
// become zeros.
template <int kHead>
__forceinline__ __device__ void CopyRows(uint32_t target, const DeviceView& view, int64_t offset,
                                         const CopyShare<kHead>& share, int head_size) {
  const int column = share.chunk * kChunkElements;
  const uint16_t* base = static_cast<const uint16_t*>(view.data) + offset;
  const uint32_t first = target + Tile<kHead>::Offset(share.row, share.chunk);
#pragma unroll
  for (int pass = 0; pass < CopyShare<kHead>::kPasses; ++pass) {
    const int token = share.tokens[pass];
    const bool valid = token >= 0 && column < head_size;
    const int64_t at = valid ? token * view.token_stride + column : 0;
    CopyAsync(first + pass * CopyShare<kHead>::kPassRows * 128, base + at, valid);
  }
}

// What a warp keeps of its 16 rows; index 0 is row g, index 1 row g + 8. A step of the first
// product takes 32 bytes of a row: 16 elements, or 32 in int8.
template <int kHead, int kSteps = kHead / 16>
struct WarpState {
  uint32_t query[kSteps][4];  // left operands
  float out[kHead / 8][4];
  float top[2];  // largest score so far, not scaled
  float sum[2];  // of this thread's columns only, until the end

  __device__ void Clear() {
#pragma unroll
    for (auto& group : out) group[0] = group[1] = group[2] = group[3] = 0;
    top[0] = top[1] = -std::numeric_limits<float>::infinity();
    sum[0] = sum[1] = 0;
  }

  __forceinline__ __device__ void LoadQuery(uint32_t tile, int warp, int lane) {
    const int row = warp * kWarpRows + (lane & 15);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      LoadMatrices(query[step], tile + Tile<kHead>::Offset(row, 2 * step + (lane >> 4)));
    }
  }
};

// The left operand of a step of 16 keys.
template <class T>
__forceinline__ __device__ void PackProbs(uint32_t (&a)[4], const float (&probs)[kKeyGroups][4],
                                          int step) {
  const float(&p)[4] = probs[2 * step], (&next)[4] = probs[2 * step + 1];
  a[0] = T::Pack(p[0], p[1]);
  a[1] = T::Pack(p[2], p[3]);
  a[2] = T::Pack(next[0], next[1]);
  a[3] = T::Pack(next[2], next[3]);
}

// Hides keys past the block's end, and the whole block from rows that do not attend it.
__forceinline__ __device__ void HideScores(float (&scores)[kKeyGroups][4], int length,
                                           uint64_t rows, int row, int lane) {
  const bool low = (rows >> row) & 1, high = (rows >> (row + 8)) & 1;
  const float hidden = -std::numeric_limits<float>::infinity();
#pragma unroll
  for (int group = 0; group < kKeyGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = group * 8 + (lane & 3) * 2 + i < length;
      if (!inside || !low) scores[group][i] = hidden;
      if (!inside || !high) scores[group][2 + i] = hidden;
    }
  }
}

// The largest of what the four threads of a row hold.
inline __device__ float RowMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}

inline __device__ float RowSum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

// Scores become 2^((score - top) * scale), and the sum is brought to the new top. What was summed
// of the values before is so by ShrinkOut with `shrink`.
template <int kHead, int kSteps>
__forceinline__ __device__ void UpdateSoftmax(float (&scores)[kKeyGroups][4],
                                              WarpState<kHead, kSteps>* state, float scale_log2,
                                              float (&shrink)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = state->top[half];
#pragma unroll
    for (int group = 0; group < kKeyGroups; ++group) {
      top = fmaxf(top, fmaxf(scores[group][2 * half], scores[group][2 * half + 1]));
    }
    top = RowMax(top);
    // Nothing seen yet: any finite number will do, and all scores are -inf.
    const float base = top == -std::numeric_limits<float>::infinity() ? 0.0f : top;
    // The difference first: for huge scores score * scale loses more bits than exp2 forgives.
    shrink[half] = Exp2((state->top[half] - base) * scale_log2);
    state->top[half] = top;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 2 * kKeyGroups; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = Exp2((score - base) * scale_log2);
      sum += score;
    }
    state->sum[half] = state->sum[half] * shrink[half] + sum;
  }
}

template <int kHead, int kSteps>
__forceinline__ __device__ void ShrinkOut(WarpState<kHead, kSteps>* state,
                                          const float (&shrink)[2]) {
  // After a row's first blocks its top hardly ever rises.
  if (!__any_sync(kWholeWarp, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
  for (int i = 0; i < kHead / 2; ++i) state->out[i / 4][i % 4] *= shrink[i % 4 / 2];
}

// `odd`: a value of the list was not finite and has been taken out of its tile.
template <class T, int kHead, int kSteps>
__device__ void StoreRows(const BlockSparseArgs& args, const Walk& walk,
                          WarpState<kHead, kSteps>* state, int row, int lane, bool odd) {
  const int32_t* tokens = args.plan.query_tokens + int64_t{walk.query_block} * kTile;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float factor = FactorOf(RowSum(state->sum[half]), walk.MayBeEmpty(args.plan));
    const int token = tokens[row + 8 * half];
    if (token < 0) continue;
    uint16_t* out = static_cast<uint16_t*>(args.out) + walk.OutOffset(args, token);
    bool lost = odd;
#pragma unroll
    for (int group = 0; group < kHead / 8; ++group) {
      if (group * 8 >= args.head_size) continue;
      const float* x = state->out[group] + 2 * half;
      lost = lost || !IsFinite(x[0] + x[1]);
      *reinterpret_cast<uint32_t*>(out + group * 8 + (lane & 3) * 2) =
          factor > 0 ? T::Pack(x[0] * factor, x[1] * factor) : T::Pack(factor, factor);
    }
    if (!lost || !(factor > 0)) continue;
    for (int group = 0; group < args.head_size / 8; ++group) {
      const int d = group * 8 + (lane & 3) * 2;
      AddOddValues<T>(args, walk, row + 8 * half, d, out);
      AddOddValues<T>(args, walk, row + 8 * half, d + 1, out);
    }
  }
}

// Where the tiles lie in the dynamic shared memory of a thread block.
template <int kHead>
struct SharedTiles {
  static constexpr int kBytes = Tile<kHead>::kBytes * (1 + 2 * kStages) + kTileAlignment;
  uint32_t query, stages;
  __device__ explicit SharedTiles(const void* memory) {
    const uint32_t start = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    query = (start + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
    stages = query + Tile<kHead>::kBytes;
  }
  __device__ uint32_t Keys(int64_t entry) const {
    return stages + static_cast<uint32_t>(entry % kStages) * 2 * Tile<kHead>::kBytes;
  }
  __device__ uint32_t Values(int64_t entry) const { return Keys(entry) + Tile<kHead>::kBytes; }
};

// Starts copying the queries; no group of its own yet.
template <int kHead>
__device__ void CopyQuery(const BlockSparseArgs& args, const Walk& walk,
                          const SharedTiles<kHead>& tiles) {
  const CopyShare<kHead> share(args.plan.query_tokens + int64_t{walk.query_block} * kTile);
  CopyRows<kHead>(tiles.query, args.query, walk.OffsetIn(args.query), share, args.head_size);
}

// Starts copying the keys and values of an entry, as one group; past the last entry an empty one,
// so that counting groups stays simple.
template <int kHead>
__device__ void CopyEntry(const BlockSparseArgs& args, const Walk& walk,
                          const SharedTiles<kHead>& tiles, int64_t entry) {
  if (entry < walk.count) {
    const int block = walk.KeyBlock(args.plan, entry);
    const CopyShare<kHead> share(args.plan.key_tokens + int64_t{block} * kTile);
    CopyRows<kHead>(tiles.Keys(entry), args.key, walk.OffsetIn(args.key), share, args.head_size);
    CopyRows<kHead>(tiles.Values(entry), args.value, walk.OffsetIn(args.value), share,
                    args.head_size);
  }
  CommitCopies();
}

// Values that are not finite become 0 in the chunks of a tile that this thread copied, once they
// have arrived: in a product with the weight 0 of a hidden pair they would be NaN. Whether there
// were any.
template <class T, int kHead>
__device__ bool TakeOutOddValues(uint32_t values) {
  const int row = static_cast<int>(threadIdx.x) / Tile<kHead>::kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % Tile<kHead>::kChunks;
  uint16_t* first =
      static_cast<uint16_t*>(__cvta_shared_to_generic(values + Tile<kHead>::Offset(row, chunk)));
  bool odd = false;
  for (int pass = 0; pass < CopyShare<kHead>::kPasses; ++pass) {
    uint16_t* element = first + pass * CopyShare<kHead>::kPassRows * 64;
    for (int i = 0; i < kChunkElements; ++i) {
      if ((element[i] & T::kExponent) != T::kExponent) continue;
      element[i] = 0;
      odd = true;
    }
  }
  return odd;
}

// What an entry lets through. Read before the products, whose time then hides the loads.
struct Visible {
  int length;
  uint64_t rows;

  __device__ Visible(const BlockSparseArgs& args, const Walk& walk, int64_t entry)
      : length(__ldg(args.plan.key_lengths + walk.KeyBlock(args.plan, entry))),
        rows(walk.RowMask(args.plan, entry)) {}

  __device__ bool HidesRows() const { return rows != ~uint64_t{0}; }

  __forceinline__ __device__ void Apply(float (&scores)[kKeyGroups][4], int row, int lane) const {
    if (length < kTile || HidesRows()) HideScores(scores, length, rows, row, lane);
  }
};

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_TILE_CUH_
