// There is one emulated device, and one stream: nothing to switch.
#ifndef DENOISED_TESTS_EMULATED_CUDA_INCLUDE_C10_CUDA_CUDAGUARD_H_
#define DENOISED_TESTS_EMULATED_CUDA_INCLUDE_C10_CUDA_CUDAGUARD_H_

#include <c10/core/Device.h>
#include <c10/cuda/CUDAStream.h>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(const c10::Device&) {}
};

struct CUDAStreamGuard {
  explicit CUDAStreamGuard(const CUDAStream&) {}
};

}  // namespace c10::cuda

#endif  // DENOISED_TESTS_EMULATED_CUDA_INCLUDE_C10_CUDA_CUDAGUARD_H_
