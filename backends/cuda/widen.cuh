// An element of a tensor as float32, and back, rounded to nearest even.
#ifndef DENOISED_BACKENDS_CUDA_WIDEN_CUH_
#define DENOISED_BACKENDS_CUDA_WIDEN_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace denoised::cuda {

inline __device__ float Widen(float x) { return x; }
inline __device__ float Widen(__nv_bfloat16 x) { return __bfloat162float(x); }
inline __device__ float Widen(__half x) { return __half2float(x); }

template <class T>
__device__ T Narrow(float x);
template <>
inline __device__ float Narrow<float>(float x) {
  return x;
}
template <>
inline __device__ __nv_bfloat16 Narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
inline __device__ __half Narrow<__half>(float x) {
  return __float2half_rn(x);
}

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_WIDEN_CUH_
