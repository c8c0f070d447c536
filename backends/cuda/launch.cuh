// The two places where a kernel's syntax is not C++: its launch and its dynamic shared memory.
#ifndef DENOISED_BACKENDS_CUDA_LAUNCH_CUH_
#define DENOISED_BACKENDS_CUDA_LAUNCH_CUH_

#include <cuda_runtime_api.h>

#include <cstddef>

namespace denoised::cuda {

// The bytes that this thread block's launch asked for, at a multiple of 128.
inline __device__ unsigned char* DynamicShared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Asynchronous on `stream`; the error is that of the launch.
template <class... Parameters, class... Arguments>
cudaError_t LaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 threads,
                         size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  // Above 48 KiB shared memory has to be asked for, once a device; asking again costs a
  // microsecond.
  constexpr size_t kFree = 48 << 10;
  if (shared_bytes > kFree) {
    const cudaError_t asked = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (asked != cudaSuccess) return asked;
  }
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_LAUNCH_CUH_
