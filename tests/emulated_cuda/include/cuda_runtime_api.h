// What the kernels and their callers use of CUDA, on a device that tests/emulated_cuda runs.
#ifndef DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_RUNTIME_API_H_
#define DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_RUNTIME_API_H_

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>  // has __noinline__ as the name of an attribute

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __shared__ static thread_local

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
const char* cudaGetErrorString(cudaError_t error);

struct CUstream_st;
using cudaStream_t = CUstream_st*;

struct cudaDeviceProp {
  char name[256];
  int major, minor;
};
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};
struct float2 {
  float x, y;
};

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

using std::max;
using std::min;

namespace denoised::emulated {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

void CheckMask(unsigned mask);
void ShuffleBits(uint32_t* bits, int from);
uint32_t Ballot(bool vote);
int ReduceAdd(int x);

}  // namespace denoised::emulated

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

void __syncthreads();
bool __syncthreads_or(bool any);

template <class T>
T __shfl_sync(unsigned mask, T x, int from) {
  static_assert(sizeof(T) == 4);
  denoised::emulated::CheckMask(mask);
  uint32_t bits = std::bit_cast<uint32_t>(x);
  denoised::emulated::ShuffleBits(&bits, from % 32);
  return std::bit_cast<T>(bits);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int flip) {
  const unsigned number = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  return __shfl_sync(mask, x, static_cast<int>(number % 32) ^ flip);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  denoised::emulated::CheckMask(mask);
  return denoised::emulated::Ballot(vote);
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline int __reduce_add_sync(unsigned mask, int x) {
  denoised::emulated::CheckMask(mask);
  return denoised::emulated::ReduceAdd(x);
}

uint32_t __cvta_generic_to_shared(const void* pointer);
void* __cvta_shared_to_generic(uint32_t address);

#endif  // DENOISED_TESTS_EMULATED_CUDA_INCLUDE_CUDA_RUNTIME_API_H_
