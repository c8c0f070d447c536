// Scores: one thread a product, with eight partial sums in the order of the host's vector lanes.
// Choice: one warp a row. It finds the count-th largest value bit by bit, then writes the indices
// of all above it and of as many equal ones as are left, in one ascending pass.
#include <cuda_bf16.h>

#include "backends/cuda/block_choice_cuda.h"
#include "backends/cuda/launch.cuh"

namespace denoised::cuda {
namespace {

constexpr int kSide = 16;   // products along each side of a thread block
constexpr int kDepth = 32;  // elements of a row that are held in shared memory
constexpr int kLanes = 8;   // partial sums of kernels::Dot
constexpr int kWarp = 32, kWarps = 4;
constexpr unsigned kAll = 0xffffffffu;

__device__ float Rounded(float x, bool bfloat16) {
  return bfloat16 ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}

// Row `row` of [rows][head_size], elements [from, from + kDepth) of it; zeros outside.
__device__ void Fetch(const float* matrix, int row, int rows, int head_size, int from,
                      float (*tile)[kDepth + 1]) {
  for (int i = threadIdx.x; i < kDepth; i += kSide) {
    const bool inside = row < rows && from + i < head_size;
    tile[threadIdx.y][i] = inside ? matrix[static_cast<int64_t>(row) * head_size + from + i] : 0.0f;
  }
}

__global__ void BlockScores(const BlockScoresArgs args) {
  __shared__ float a[kSide][kDepth + 1], b[kSide][kDepth + 1];
  const int64_t head = blockIdx.z;
  const float* queries = args.queries + head * args.query_blocks * args.head_size;
  const float* keys = args.keys + head * args.key_blocks * args.head_size;
  const int first_query = static_cast<int>(blockIdx.y) * kSide;
  const int first_key = static_cast<int>(blockIdx.x) * kSide;
  const int x = threadIdx.x, y = threadIdx.y;
  const int whole = args.head_size / kLanes * kLanes;

  float lane[kLanes] = {};
  float tail = 0;
  for (int from = 0; from < args.head_size; from += kDepth) {
    Fetch(queries, first_query + y, args.query_blocks, args.head_size, from, a);
    Fetch(keys, first_key + y, args.key_blocks, args.head_size, from, b);
    __syncthreads();
    for (int i = 0; i < kDepth && from + i < whole; i += kLanes) {
#pragma unroll
      for (int l = 0; l < kLanes; ++l) lane[l] = __fmaf_rn(a[y][i + l], b[x][i + l], lane[l]);
    }
    if (from + kDepth >= args.head_size) {  // the last turn has what is left over eights
      tail = __fadd_rn(__fadd_rn(__fadd_rn(lane[0], lane[4]), __fadd_rn(lane[2], lane[6])),
                       __fadd_rn(__fadd_rn(lane[1], lane[5]), __fadd_rn(lane[3], lane[7])));
      for (int i = whole - from; i < args.head_size - from; ++i) {
        tail = __fmaf_rn(a[y][i], b[x][i], tail);
      }
    }
    __syncthreads();
  }
  const int query = first_query + y, key = first_key + x;
  if (query >= args.query_blocks || key >= args.key_blocks) return;
  const float product = Rounded(tail, args.bfloat16);
  args.scores[(head * args.query_blocks + query) * args.key_blocks + key] =
      Rounded(__fdiv_rn(product, args.divisor), args.bfloat16);
}

// Unsigned numbers in the order of the floats; both zeros alike, NaN as +inf.
__device__ unsigned Ordered(float x) {
  if (x != x) x = INFINITY;
  const unsigned bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// How many of the row are at least `bound`.
__device__ int CountFrom(const float* row, int columns, unsigned bound, int lane) {
  int count = 0;
  for (int i = lane; i < columns; i += kWarp) count += Ordered(row[i]) >= bound ? 1 : 0;
  return __reduce_add_sync(kAll, count);
}

__global__ void Largest(const LargestArgs args) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (index >= static_cast<int64_t>(args.heads) * args.rows) return;
  const int lane = threadIdx.x;
  const int64_t block = index / args.rows * args.blocks + __ldg(args.block + index % args.rows);
  const float* row = args.scores + block * args.columns;
  int32_t* chosen = args.chosen + index * args.count;

  unsigned least = 0;  // the count-th largest, once all bits are found
  for (int bit = 31; bit >= 0; --bit) {
    const unsigned bound = least | 1u << bit;
    if (CountFrom(row, args.columns, bound, lane) >= args.count) least = bound;
  }
  int equals = args.count;  // to take of those equal to it
  if (least != kAll) equals -= CountFrom(row, args.columns, least + 1, lane);
  const unsigned before = (1u << lane) - 1;
  for (int from = 0, written = 0; from < args.columns; from += kWarp) {
    const bool inside = from + lane < args.columns;
    const unsigned value = inside ? Ordered(row[from + lane]) : 0;
    const unsigned equal = __ballot_sync(kAll, inside && value == least);
    const bool take =
        inside && (value > least || (value == least && __popc(equal & before) < equals));
    const unsigned taken = __ballot_sync(kAll, take);
    if (take) chosen[written + __popc(taken & before)] = from + lane;
    written += __popc(taken);
    equals -= __popc(equal);  // below zero from the last one on: none is taken then
  }
}

unsigned Blocks(int64_t count, int side) {
  return static_cast<unsigned>((count + side - 1) / side);
}

}  // namespace

cudaError_t LaunchBlockScores(const BlockScoresArgs& args, cudaStream_t stream) {
  const dim3 grid(Blocks(args.key_blocks, kSide), Blocks(args.query_blocks, kSide),
                  static_cast<unsigned>(args.heads));
  return LaunchKernel(BlockScores, grid, dim3(kSide, kSide), 0, stream, args);
}

cudaError_t LaunchLargest(const LargestArgs& args, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(args.heads) * args.rows;
  return LaunchKernel(Largest, Blocks(rows, kWarps), dim3(kWarp, kWarps), 0, stream, args);
}

}  // namespace denoised::cuda
