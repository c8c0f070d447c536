// Block-sparse attention in float32 on the plain cores: for models in float32 and as a check of the
// tensor-core kernel. A warp takes 8 query rows; its lanes are keys in the first product, head
// elements in the second.
#include <limits>

#include "backends/cuda/block_sparse_walk.cuh"
#include "backends/cuda/launch.cuh"

namespace denoised::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kTile = kernels::kBlock;
constexpr int kWarpRows = kTile / kWarps;
constexpr int kLaneKeys = kTile / 32;
constexpr int kLaneElements = kMaxHeadSize / 32;
constexpr int kKeyStride = kMaxHeadSize + 1;  // odd: 32 keys lie in 32 banks
constexpr float kLog2E = 1.4426950408889634f;
constexpr unsigned kWholeWarp = 0xffffffffu;

struct SharedTiles {
  float query[kTile][kMaxHeadSize];
  float keys[kTile][kKeyStride];
  float values[kTile][kMaxHeadSize];
};

struct Float32 {
  using Stored = float;
  static __device__ float Widen(float x) { return x; }
  static __device__ float Narrow(float x) { return x; }
};

// Rows of one block of tokens; rows past its end become zeros, and where `take_out_odd` what is not
// finite does too: in a product with the weight 0 of a hidden pair it would be NaN. Whether any
// did.
template <int kStride>
__device__ bool CopyRows(float (&target)[kTile][kStride], const DeviceView& view, int64_t offset,
                         const int32_t* tokens, int head_size, bool take_out_odd = false) {
  const float* base = static_cast<const float*>(view.data) + offset;
  bool odd = false;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * head_size; i += kThreads) {
    const int row = i / head_size, column = i % head_size, token = __ldg(tokens + row);
    const float x = token < 0 ? 0.0f : base[token * view.token_stride + column];
    const bool out = take_out_odd && !IsFinite(x);
    target[row][column] = out ? 0.0f : x;
    odd = odd || out;
  }
  return odd;
}

struct RowState {
  float top = -std::numeric_limits<float>::infinity();
  float sum = 0;                  // of this lane's keys only, until the end
  float out[kLaneElements] = {};  // elements lane, lane + 32, ...
};

__device__ float WarpMax(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, step));
  return x;
}

__device__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  return x;
}

__device__ float Score(const float* query, const float* key, int head_size) {
  float sum = 0;
  for (int d = 0; d < head_size; ++d) sum = fmaf(query[d], key[d], sum);
  return sum;
}

// One query row against the tile's first `length` keys; none of them where the row is not `on`.
__device__ void AttendRow(const SharedTiles& tiles, int row, int length, bool on, int head_size,
                          float scale, int lane, RowState* state) {
  if (!on) return;
  float probs[kLaneKeys], top = state->top;
#pragma unroll
  for (int i = 0; i < kLaneKeys; ++i) {
    const int key = lane + 32 * i;
    const float score = Score(tiles.query[row], tiles.keys[key], head_size);
    probs[i] = key < length ? score : -std::numeric_limits<float>::infinity();
    top = fmaxf(top, probs[i]);
  }
  top = WarpMax(top);
  // All scores are -inf, or get lost in a maximum because they are NaN: any finite number will do.
  const float base = top == -std::numeric_limits<float>::infinity() ? 0.0f : top;
  const float shrink = exp2f((state->top - base) * scale * kLog2E);
  state->top = top;
  state->sum *= shrink;
#pragma unroll
  for (float& x : state->out) x *= shrink;
#pragma unroll
  for (int i = 0; i < kLaneKeys; ++i) {
    probs[i] = exp2f((probs[i] - base) * scale * kLog2E);
    state->sum += probs[i];
  }
#pragma unroll
  for (int i = 0; i < kLaneKeys; ++i) {
    for (int key = 0; key < 32; ++key) {
      const float p = __shfl_sync(kWholeWarp, probs[i], key);
#pragma unroll
      for (int e = 0; e < kLaneElements; ++e) {
        const int d = lane + 32 * e;
        if (d < head_size) state->out[e] = fmaf(p, tiles.values[key + 32 * i][d], state->out[e]);
      }
    }
  }
}

// `row` is the query's place in its block.
__device__ void StoreRow(const BlockSparseArgs& args, const Walk& walk, int row, int lane,
                         const RowState& state, bool odd) {
  const float sum = WarpSum(state.sum), factor = FactorOf(sum, walk.MayBeEmpty(args.plan));
  const int token = args.plan.query_tokens[int64_t{walk.query_block} * kTile + row];
  if (token < 0) return;
  float* out = static_cast<float*>(args.out) + walk.OutOffset(args, token);
#pragma unroll
  for (int e = 0; e < kLaneElements; ++e) {
    const int d = lane + 32 * e;
    if (d >= args.head_size) continue;
    out[d] = factor > 0 ? state.out[e] / sum : factor;
    const bool lost = odd || !IsFinite(state.out[e]);
    if (lost && factor > 0) AddOddValues<Float32>(args, walk, row, d, out);
  }
}

__global__ void __launch_bounds__(kThreads)
    BlockSparseFloat(const __grid_constant__ BlockSparseArgs args) {
  SharedTiles& tiles = *reinterpret_cast<SharedTiles*>(DynamicShared());
  const Walk walk(args);
  const int first = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t* queries = args.plan.query_tokens + int64_t{walk.query_block} * kTile;
  RowState states[kWarpRows];
  bool odd = false;
  CopyRows(tiles.query, args.query, walk.OffsetIn(args.query), queries, args.head_size);
  for (int64_t entry = 0; entry < walk.count; ++entry) {
    const int block = walk.KeyBlock(args.plan, entry);
    const int32_t* tokens = args.plan.key_tokens + int64_t{block} * kTile;
    __syncthreads();  // the last turn has read its keys and values
    CopyRows(tiles.keys, args.key, walk.OffsetIn(args.key), tokens, args.head_size);
    const uint64_t rows = walk.RowMask(args.plan, entry);
    odd |= CopyRows(tiles.values, args.value, walk.OffsetIn(args.value), tokens, args.head_size,
                    rows != ~uint64_t{0});
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      AttendRow(tiles, first + i, __ldg(args.plan.key_lengths + block),
                ((rows >> (first + i)) & 1) != 0, args.head_size, args.scale, lane, &states[i]);
    }
  }
  const bool any_odd = __syncthreads_or(odd);
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) StoreRow(args, walk, first + i, lane, states[i], any_odd);
}

}  // namespace

cudaError_t LaunchBlockSparseFloat(const BlockSparseArgs& args, cudaStream_t stream) {
  return LaunchKernel(BlockSparseFloat, GridOf(args), kThreads, sizeof(SharedTiles), stream, args);
}

}  // namespace denoised::cuda
