// backends/cuda/launch.cuh on the emulated device: the kernel has run when this returns.
#ifndef DENOISED_BACKENDS_CUDA_LAUNCH_CUH_
#define DENOISED_BACKENDS_CUDA_LAUNCH_CUH_

#include "tests/emulated_cuda/block.h"

namespace denoised::cuda {

using emulated::DynamicShared;

template <class... Parameters, class... Arguments>
cudaError_t LaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 threads,
                         size_t shared_bytes, cudaStream_t, const Arguments&... arguments) {
  return emulated::RunGrid(grid, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_LAUNCH_CUH_
