// Block-sparse attention on tensor cores: mma.sync m16n8k16, keys and values double-buffered in
// shared memory by cp.async. Four warps, 16 query rows each; a tile is 64 queries by 64 keys.
//
// Fragments are as the PTX ISA lays them out: with g = lane / 4 and t = lane % 4 a thread holds, of
// a 16 x 8 accumulator, columns 2t and 2t + 1 of rows g and g + 8. Two neighbouring accumulators of
// scores are, rounded, the left operand of the product with 16 values: probabilities never leave
// the registers.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <limits>

#include "backends/cuda/block_sparse_walk.cuh"

namespace denoised::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kTile = kernels::kBlock;     // queries and keys of a tile
constexpr int kWarpRows = kTile / kWarps;  // 16, the rows of one mma
constexpr int kChunkElements = 8;          // 16 bytes
constexpr int kKeyGroups = kTile / 8;      // accumulators of scores, 8 keys wide
constexpr int kStages = 2;
constexpr float kLog2E = 1.4426950408889634f;
constexpr unsigned kWholeWarp = 0xffffffffu;

// A tile in shared memory: rows of 16-byte chunks. Chunks change places with the row, so that the
// eight rows that one ldmatrix reads lie in different banks.
template <int kHead>
struct Tile {
  static constexpr int kChunks = kHead / kChunkElements;
  static constexpr int kBytes = kTile * kHead * 2;
  static __device__ uint32_t Offset(int row, int chunk) {
    return static_cast<uint32_t>((row * kChunks + (chunk ^ (row & 7))) * 16);
  }
};

// 16 bytes to shared memory, zeros where `valid` is false; `source` is a readable address anyhow.
__device__ void CopyAsync(uint32_t target, const void* source, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}

__device__ void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// All but the newest `kPending` groups have arrived.
template <int kPending>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// The two dtypes: the product and the rounding of pairs, the first of a pair in the low half.
struct BFloat16 {
  static __device__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  static __device__ uint32_t Pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

struct Float16 {
  static __device__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  static __device__ uint32_t Pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

// Starts copying the rows of one block of tokens; rows past its end and columns past the head size
// become zeros.
template <int kHead>
__device__ void CopyRows(uint32_t target, const DeviceView& view, int64_t offset,
                         const int32_t* tokens, int chunks) {
  const uint16_t* base = static_cast<const uint16_t*>(view.data) + offset;
#pragma unroll
  for (int i = 0; i < kTile * Tile<kHead>::kChunks / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = index / Tile<kHead>::kChunks, chunk = index % Tile<kHead>::kChunks;
    const int token = __ldg(tokens + row);
    const bool valid = token >= 0 && chunk < chunks;
    const int64_t at = valid ? token * view.token_stride + chunk * kChunkElements : 0;
    CopyAsync(target + Tile<kHead>::Offset(row, chunk), base + at, valid);
  }
}

// What a warp keeps of its 16 rows; index 0 is row g, index 1 row g + 8.
template <int kHead>
struct WarpState {
  uint32_t query[kHead / 16][4];  // left operands
  float out[kHead / 8][4];
  float top[2];  // largest score so far, not scaled
  float sum[2];  // of this thread's columns only, until the end

  __device__ void Clear() {
#pragma unroll
    for (auto& group : out) group[0] = group[1] = group[2] = group[3] = 0;
    top[0] = top[1] = -std::numeric_limits<float>::infinity();
    sum[0] = sum[1] = 0;
  }

  __device__ void LoadQuery(uint32_t tile, int warp, int lane) {
    const int row = warp * kWarpRows + (lane & 15);
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      LoadMatrices(query[step], tile + Tile<kHead>::Offset(row, 2 * step + (lane >> 4)));
    }
  }
};

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
      T::MultiplyAdd(scores[2 * pair], state.query[step], b[0], b[1]);
      T::MultiplyAdd(scores[2 * pair + 1], state.query[step], b[2], b[3]);
    }
  }
}

// Hides keys past the block's end, and the whole block from rows that do not attend it.
__device__ void HideScores(float (&scores)[kKeyGroups][4], int length, uint64_t rows, int row,
                           int lane) {
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
__device__ float RowMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}

__device__ float RowSum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

// Scores become 2^((score - top) * scale); what was summed before is brought to the new top.
template <int kHead>
__device__ void UpdateSoftmax(float (&scores)[kKeyGroups][4], WarpState<kHead>* state,
                              float scale_log2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = state->top[half];
#pragma unroll
    for (auto& group : scores) top = fmaxf(top, fmaxf(group[2 * half], group[2 * half + 1]));
    top = RowMax(top);
    // Nothing seen yet: any finite number will do, and all scores are -inf.
    const float base = top == -std::numeric_limits<float>::infinity() ? 0.0f : top;
    // The difference first: for huge scores score * scale loses more bits than exp2 forgives.
    const float shrink = Exp2((state->top[half] - base) * scale_log2);
    state->top[half] = top;
    float sum = 0;
#pragma unroll
    for (auto& group : scores) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        group[i] = Exp2((group[i] - base) * scale_log2);
        sum += group[i];
      }
    }
    state->sum[half] = state->sum[half] * shrink + sum;
#pragma unroll
    for (auto& group : state->out) {
      group[2 * half] *= shrink;
      group[2 * half + 1] *= shrink;
    }
  }
}

// out += p v of the tile.
template <class T, int kHead>
__device__ void MultiplyValues(const float (&probs)[kKeyGroups][4], WarpState<kHead>* state,
                               uint32_t values, int lane) {
  // Transposed on the way: matrices 0 and 1 are keys 0-7 and 8-15 of 8 elements, 2 and 3 of the
  // next 8.
  const int row = lane & 15, half = lane >> 4;
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) {
    const float(&p)[4] = probs[2 * step], (&next)[4] = probs[2 * step + 1];
    const uint32_t a[4] = {T::Pack(p[0], p[1]), T::Pack(p[2], p[3]), T::Pack(next[0], next[1]),
                           T::Pack(next[2], next[3])};
#pragma unroll
    for (int pair = 0; pair < kHead / 16; ++pair) {
      uint32_t b[4];
      LoadMatricesTransposed(b, values + Tile<kHead>::Offset(step * 16 + row, 2 * pair + half));
      T::MultiplyAdd(state->out[2 * pair], a, b[0], b[1]);
      T::MultiplyAdd(state->out[2 * pair + 1], a, b[2], b[3]);
    }
  }
}

template <class T, int kHead>
__device__ void StoreRows(const BlockSparseArgs& args, const Walk& walk, WarpState<kHead>* state,
                          int row, int lane) {
  const int32_t* tokens = args.plan.query_tokens + int64_t{walk.query_block} * kTile;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = RowSum(state->sum[half]);
    const float factor = sum > 0 ? 1.0f / sum : 0.0f;
    const int token = tokens[row + 8 * half];
    if (token < 0) continue;
    uint16_t* out = static_cast<uint16_t*>(args.out) + walk.OutOffset(args, token);
#pragma unroll
    for (int group = 0; group < kHead / 8; ++group) {
      if (group * 8 >= args.head_size) continue;
      const float(&x)[4] = state->out[group];
      *reinterpret_cast<uint32_t*>(out + group * 8 + (lane & 3) * 2) =
          T::Pack(x[2 * half] * factor, x[2 * half + 1] * factor);
    }
  }
}

// Where the tiles lie in the dynamic shared memory of a thread block.
template <int kHead>
struct SharedTiles {
  static constexpr int kBytes = Tile<kHead>::kBytes * (1 + 2 * kStages);
  uint32_t query, stages;
  __device__ explicit SharedTiles(const void* memory)
      : query(static_cast<uint32_t>(__cvta_generic_to_shared(memory))),
        stages(query + Tile<kHead>::kBytes) {}
  __device__ uint32_t Keys(int64_t entry) const {
    return stages + static_cast<uint32_t>(entry % kStages) * 2 * Tile<kHead>::kBytes;
  }
  __device__ uint32_t Values(int64_t entry) const { return Keys(entry) + Tile<kHead>::kBytes; }
};

// Starts copying the keys and values of an entry, as one group; past the last entry an empty one,
// so that counting groups stays simple.
template <int kHead>
__device__ void CopyEntry(const BlockSparseArgs& args, const Walk& walk,
                          const SharedTiles<kHead>& tiles, int64_t entry) {
  if (entry < walk.count) {
    const int chunks = args.head_size / kChunkElements;
    const int32_t* tokens = args.plan.key_tokens + int64_t{walk.KeyBlock(args.plan, entry)} * kTile;
    CopyRows<kHead>(tiles.Keys(entry), args.key, walk.OffsetIn(args.key), tokens, chunks);
    CopyRows<kHead>(tiles.Values(entry), args.value, walk.OffsetIn(args.value), tokens, chunks);
  }
  CommitCopies();
}

template <class T, int kHead>
__global__ void __launch_bounds__(kThreads, 2) BlockSparseHalf(const BlockSparseArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  const SharedTiles<kHead> tiles(memory);
  const Walk walk(args);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * kWarpRows + lane / 4;
  const float scale_log2 = args.scale * kLog2E;

  CopyRows<kHead>(tiles.query, args.query, walk.OffsetIn(args.query),
                  args.plan.query_tokens + int64_t{walk.query_block} * kTile,
                  args.head_size / kChunkElements);
  CopyEntry<kHead>(args, walk, tiles, 0);  // one group with the queries
  WarpState<kHead> state;
  state.Clear();
  for (int64_t entry = 0; entry < walk.count; ++entry) {
    CopyEntry<kHead>(args, walk, tiles, entry + 1);
    WaitForCopies<1>();
    __syncthreads();
    if (entry == 0) state.LoadQuery(tiles.query, warp, lane);
    float scores[kKeyGroups][4];
    MultiplyKeys<T, kHead>(scores, state, tiles.Keys(entry), lane);
    const int length = __ldg(args.plan.key_lengths + walk.KeyBlock(args.plan, entry));
    const uint64_t rows = walk.RowMask(args.plan, entry);
    if (length < kTile || rows != ~uint64_t{0}) HideScores(scores, length, rows, row, lane);
    UpdateSoftmax<kHead>(scores, &state, scale_log2);
    MultiplyValues<T, kHead>(scores, &state, tiles.Values(entry), lane);
    __syncthreads();  // the next turn copies over these keys and values
  }
  WaitForCopies<0>();
  StoreRows<T, kHead>(args, walk, &state, row, lane);
}

template <class T, int kHead>
cudaError_t Launch(const BlockSparseArgs& args, cudaStream_t stream) {
  constexpr int kBytes = SharedTiles<kHead>::kBytes;
  const auto kernel = BlockSparseHalf<T, kHead>;
  // Above 48 KiB shared memory has to be asked for, once a device; asking again costs a
  // microsecond.
  const cudaError_t asked =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (asked != cudaSuccess) return asked;
  kernel<<<GridOf(args), kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchBlockSparseHalf(const BlockSparseArgs& args, bool bfloat16, cudaStream_t stream) {
  if (args.head_size <= 64) {
    return bfloat16 ? Launch<BFloat16, 64>(args, stream) : Launch<Float16, 64>(args, stream);
  }
  return bfloat16 ? Launch<BFloat16, 128>(args, stream) : Launch<Float16, 128>(args, stream);
}

}  // namespace denoised::cuda
