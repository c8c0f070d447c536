// A thread block has a row. It reads a row twice or three times; all but the first come from cache.
#include <cuda_bf16.h>

#include "backends/cuda/launch.cuh"
#include "backends/cuda/widen.cuh"
#include "runtime/models/cuda_rows.h"

namespace denoised::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Neighbours that a thread reads or writes at once.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Some {
  T x[kWidth];
};

template <int kWidth, class T>
__device__ Some<T, kWidth> Load(const T* from) {
  return *reinterpret_cast<const Some<T, kWidth>*>(from);
}

// The same on all threads.
__device__ float BlockSum(float x) {
  __shared__ float partial[kWarps];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (float part : partial) sum += part;
  return sum;
}

// Sum over the row of f(element).
template <int kWidth, class T, class F>
__device__ float RowSum(const T* row, int width, const F& f) {
  float sum = 0;
  for (int d = static_cast<int>(threadIdx.x) * kWidth; d < width; d += kThreads * kWidth) {
    const Some<T, kWidth> some = Load<kWidth>(row + d);
#pragma unroll
    for (const T& x : some.x) sum += f(Widen(x));
  }
  return BlockSum(sum);
}

__device__ const float* Row(const Companion& companion, int64_t batch, int64_t token) {
  return companion.data + batch * companion.batch_stride + token * companion.token_stride;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    NormModulate(const float* all, const Companion scales, const Companion shifts, float eps,
                 const RowShape shape, T* out) {
  const int64_t row = blockIdx.x, batch = row / shape.tokens, token = row % shape.tokens;
  const int width = shape.width;
  const float* x = all + row * width;
  const float mean = RowSum<kWidth>(x, width, [](float a) { return a; }) / width;
  const auto squared = [mean](float a) { return (a - mean) * (a - mean); };
  const float inverse = 1.0f / sqrtf(RowSum<kWidth>(x, width, squared) / width + eps);
  const float *scale = Row(scales, batch, token), *shift = Row(shifts, batch, token);
  for (int d = static_cast<int>(threadIdx.x) * kWidth; d < width; d += kThreads * kWidth) {
    const auto in = Load<kWidth>(x + d), by = Load<kWidth>(scale + d), to = Load<kWidth>(shift + d);
    Some<T, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      result.x[i] = Narrow<T>((in.x[i] - mean) * inverse * by.x[i] + to.x[i]);
    }
    *reinterpret_cast<Some<T, kWidth>*>(out + row * width + d) = result;
  }
}

template <class T, int kWidth>
__device__ void Rotate(const Rotation& rotation, int64_t token, int d, Some<T, kWidth>* some) {
  const int64_t pair = token * (rotation.head_size / 2) + d % rotation.head_size / 2;
#pragma unroll
  for (int i = 0; i < kWidth; i += 2) {
    const float c = rotation.cos[pair + i / 2], s = rotation.sin[pair + i / 2];
    const float a = Widen(some->x[i]), b = Widen(some->x[i + 1]);
    some->x[i] = Narrow<T>(a * c - b * s);
    some->x[i + 1] = Narrow<T>(a * s + b * c);
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    NormRms(const T* all, const T* weight, float eps, const RowShape shape, const Rotation rotation,
            T* out) {
  const int64_t row = blockIdx.x;
  const int width = shape.width;
  const T* x = all + row * width;
  const float squares = RowSum<kWidth>(x, width, [](float a) { return a * a; });
  const float inverse = 1.0f / sqrtf(squares / width + eps);
  for (int d = static_cast<int>(threadIdx.x) * kWidth; d < width; d += kThreads * kWidth) {
    const auto in = Load<kWidth>(x + d), by = Load<kWidth>(weight + d);
    Some<T, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      result.x[i] = Narrow<T>(Widen(in.x[i]) * inverse * Widen(by.x[i]));
    }
    if (rotation.cos != nullptr) Rotate(rotation, row % shape.tokens, d, &result);
    *reinterpret_cast<Some<T, kWidth>*>(out + row * width + d) = result;
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    AddGated(const T* h, const T* update, const Companion gates, const RowShape shape, T* out,
             float* wide) {
  const int64_t row = blockIdx.x;
  const float* gate =
      gates.data == nullptr ? nullptr : Row(gates, row / shape.tokens, row % shape.tokens);
  for (int d = static_cast<int>(threadIdx.x) * kWidth; d < shape.width; d += kThreads * kWidth) {
    const int64_t at = row * shape.width + d;
    const auto base = Load<kWidth>(h + at), more = Load<kWidth>(update + at);
    Some<T, kWidth> result;
    Some<float, kWidth> copy;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float factor = gate == nullptr ? 1.0f : gate[d + i];
      result.x[i] = Narrow<T>(__fadd_rn(Widen(base.x[i]), __fmul_rn(Widen(more.x[i]), factor)));
      copy.x[i] = Widen(result.x[i]);
    }
    *reinterpret_cast<Some<T, kWidth>*>(out + at) = result;
    if (wide != nullptr) *reinterpret_cast<Some<float, kWidth>*>(wide + at) = copy;
  }
}

// What launch(T, kWidth) gives for the dtype and the widest vector that the rows fit.
template <class Launch>
cudaError_t ForRows(bool bfloat16, int width, const Launch& launch) {
  const bool four = width % 4 == 0;
  if (bfloat16) {
    return four ? launch.template operator()<__nv_bfloat16, 4>()
                : launch.template operator()<__nv_bfloat16, 2>();
  }
  return four ? launch.template operator()<float, 4>() : launch.template operator()<float, 2>();
}

unsigned Blocks(const RowShape& shape) { return static_cast<unsigned>(shape.batch * shape.tokens); }

}  // namespace

cudaError_t LaunchNormModulate(const float* x, const Companion& scale, const Companion& shift,
                               float eps, const RowShape& shape, bool bfloat16, void* out,
                               cudaStream_t stream) {
  return ForRows(bfloat16, shape.width, [&]<class T, int kWidth>() {
    return LaunchKernel(NormModulate<T, kWidth>, Blocks(shape), kThreads, 0, stream, x, scale,
                        shift, eps, shape, static_cast<T*>(out));
  });
}

cudaError_t LaunchNormRms(const void* x, const void* weight, float eps, const RowShape& shape,
                          const Rotation& rotation, bool bfloat16, void* out, cudaStream_t stream) {
  const int vector = rotation.cos == nullptr ? shape.width : rotation.head_size;
  return ForRows(bfloat16, vector, [&]<class T, int kWidth>() {
    return LaunchKernel(NormRms<T, kWidth>, Blocks(shape), kThreads, 0, stream,
                        static_cast<const T*>(x), static_cast<const T*>(weight), eps, shape,
                        rotation, static_cast<T*>(out));
  });
}

cudaError_t LaunchAddGated(const void* h, const void* update, const Companion& gate,
                           const RowShape& shape, bool bfloat16, void* out, float* wide,
                           cudaStream_t stream) {
  return ForRows(bfloat16, shape.width, [&]<class T, int kWidth>() {
    return LaunchKernel(AddGated<T, kWidth>, Blocks(shape), kThreads, 0, stream,
                        static_cast<const T*>(h), static_cast<const T*>(update), gate, shape,
                        static_cast<T*>(out), wide);
  });
}

}  // namespace denoised::cuda
