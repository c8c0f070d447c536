// The one stream of the emulated device.
#ifndef DENOISED_TESTS_EMULATED_CUDA_INCLUDE_C10_CUDA_CUDASTREAM_H_
#define DENOISED_TESTS_EMULATED_CUDA_INCLUDE_C10_CUDA_CUDASTREAM_H_

#include <cuda_runtime_api.h>

namespace c10::cuda {

struct CUDAStream {
  operator cudaStream_t() const { return nullptr; }
  void synchronize() const;
};

inline CUDAStream getCurrentCUDAStream(int = 0) { return {}; }
inline CUDAStream getStreamFromPool() { return {}; }

}  // namespace c10::cuda

#endif  // DENOISED_TESTS_EMULATED_CUDA_INCLUDE_C10_CUDA_CUDASTREAM_H_
