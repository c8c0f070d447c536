// An element of a tensor as float32.
#ifndef DENOISED_BACKENDS_CUDA_WIDEN_CUH_
#define DENOISED_BACKENDS_CUDA_WIDEN_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace denoised::cuda {

inline __device__ float Widen(float x) { return x; }
inline __device__ float Widen(__nv_bfloat16 x) { return __bfloat162float(x); }
inline __device__ float Widen(__half x) { return __half2float(x); }

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_WIDEN_CUH_
