#ifndef DENOISED_TESTS_EMULATED_CUDA_INCLUDE_ATEN_CUDA_CUDACONTEXT_H_
#define DENOISED_TESTS_EMULATED_CUDA_INCLUDE_ATEN_CUDA_CUDACONTEXT_H_

#include <cuda_runtime_api.h>

namespace at::cuda {

const cudaDeviceProp* getDeviceProperties(int device);

}  // namespace at::cuda

#endif  // DENOISED_TESTS_EMULATED_CUDA_INCLUDE_ATEN_CUDA_CUDACONTEXT_H_
