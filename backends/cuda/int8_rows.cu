// Key means and int8 rows for block_sparse_int8.cu.
#include "backends/cuda/block_sparse_int8_cuda.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/widen.cuh"
#include "backends/kernels/int8_rule.h"

namespace denoised::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr unsigned kWholeWarp = 0xffffffffu;

// First element of a row; `head` counts through the batch.
template <class T>
__device__ const T* RowOf(const HalfRows& rows, int64_t head, int64_t token) {
  return static_cast<const T*>(rows.view.data) + head / rows.heads * rows.view.batch_stride +
         head % rows.heads * rows.view.head_stride + token * rows.view.token_stride;
}

// A thread block has one span of one head, a thread one element.
template <class T>
__global__ void SpanSums(const HalfRows rows, float* sums) {
  const int spans = SpansOf(rows.length);
  const int64_t head = blockIdx.x / spans, first = int64_t{blockIdx.x % spans} * kSpanTokens;
  const int count = static_cast<int>(min(int64_t{kSpanTokens}, rows.length - first));
  const int d = static_cast<int>(threadIdx.x);
  if (d >= rows.head_size) return;
  const T* x = RowOf<T>(rows, head, first) + d;
  float sum = 0;
#pragma unroll 8
  for (int i = 0; i < count; ++i) sum += Widen(x[i * rows.view.token_stride]);
  sums[int64_t{blockIdx.x} * rows.head_size + d] = sum;
}

// A thread block has one head: its spans are added in order.
__global__ void MeanOfSums(const HalfRows rows, const float* sums, float* mean) {
  const int spans = SpansOf(rows.length), d = static_cast<int>(threadIdx.x);
  if (d >= rows.head_size) return;
  const float* x = sums + int64_t{blockIdx.x} * spans * rows.head_size + d;
  float sum = 0;
  for (int i = 0; i < spans; ++i) sum += x[int64_t{i} * rows.head_size];
  mean[int64_t{blockIdx.x} * rows.head_size + d] = sum / static_cast<float>(rows.length);
}

// The part of a row that one lane has: kElements neighbours, zeros past the row's end.
template <int kElements>
struct LaneElements {
  float x[kElements];

  template <class T>
  __device__ LaneElements(const T* row, const float* mean, int head_size, int lane) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int d = lane * kElements + i;
      x[i] = d < head_size ? Widen(row[d]) : 0.0f;
      if (mean != nullptr && d < head_size) x[i] -= mean[d];
    }
  }

  // Largest magnitude of the whole row, NaN where an element is.
  __device__ float Most() const {
    float most = 0;
#pragma unroll
    for (float element : x) most = kernels::Int8Larger(most, fabsf(element));
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      most = kernels::Int8Larger(most, __shfl_xor_sync(kWholeWarp, most, step));
    }
    return most;
  }

  // Their bytes, the first lowest.
  __device__ uint32_t Bytes(float inverse) const {
    uint32_t bytes = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      bytes |= (static_cast<uint32_t>(kernels::Int8Of(x[i], inverse)) & 0xffu) << (8 * i);
    }
    return bytes;
  }
};

template <int kElements>
struct StoredBytes {
  using Type = uint32_t;
};
template <>
struct StoredBytes<2> {
  using Type = uint16_t;
};

// A warp has one row.
template <class T, int kElements>
__global__ void __launch_bounds__(kThreads)
    Int8Rows(const HalfRows rows, const float* mean, int8_t* bytes, float* scale) {
  using Stored = typename StoredBytes<kElements>::Type;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= int64_t{rows.batch} * rows.heads * rows.length) return;  // the whole warp
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t head = row / rows.length;
  const float* head_mean = mean == nullptr ? nullptr : mean + head * rows.head_size;
  const LaneElements<kElements> elements(RowOf<T>(rows, head, row % rows.length), head_mean,
                                         rows.head_size, lane);
  const float unit = kernels::Int8Scale(elements.Most());
  reinterpret_cast<Stored*>(bytes)[row * 32 + lane] =
      static_cast<Stored>(elements.Bytes(1.0f / unit));
  if (lane == 0) scale[row] = unit;
}

template <class T>
cudaError_t KeyMeans(const HalfRows& rows, float* sums, float* mean, cudaStream_t stream) {
  const unsigned heads = static_cast<unsigned>(rows.batch * rows.heads);
  const cudaError_t launched =
      LaunchKernel(SpanSums<T>, heads * static_cast<unsigned>(SpansOf(rows.length)), kMaxHeadSize,
                   0, stream, rows, sums);
  if (launched != cudaSuccess) return launched;
  return LaunchKernel(MeanOfSums, heads, kMaxHeadSize, 0, stream, rows, sums, mean);
}

template <class T>
cudaError_t Launch(const HalfRows& rows, const float* mean, int8_t* bytes, float* scale,
                   cudaStream_t stream) {
  const int64_t count = int64_t{rows.batch} * rows.heads * rows.length;
  const unsigned grid = static_cast<unsigned>((count + kWarps - 1) / kWarps);
  const auto kernel = Int8RowBytes(rows.head_size) == 64 ? Int8Rows<T, 2> : Int8Rows<T, 4>;
  return LaunchKernel(kernel, grid, kThreads, 0, stream, rows, mean, bytes, scale);
}

}  // namespace

cudaError_t LaunchKeyMeans(const HalfRows& rows, float* sums, float* mean, cudaStream_t stream) {
  return rows.bfloat16 ? KeyMeans<__nv_bfloat16>(rows, sums, mean, stream)
                       : KeyMeans<__half>(rows, sums, mean, stream);
}

cudaError_t LaunchInt8Rows(const HalfRows& rows, const float* mean, int8_t* bytes, float* scale,
                           cudaStream_t stream) {
  return rows.bfloat16 ? Launch<__nv_bfloat16>(rows, mean, bytes, scale, stream)
                       : Launch<__half>(rows, mean, bytes, scale, stream);
}

}  // namespace denoised::cuda
