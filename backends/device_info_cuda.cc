// Properties of a CUDA device. Compiled where DENOISED_CUDA is on; device_info_cuda_stub.cc else.
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include "backends/attention_spec.h"
#include "backends/error.h"

namespace denoised {

DeviceInfo QueryCuda(int index) {
  const int count = c10::cuda::device_count();
  if (index < 0 || index >= count) {
    throw Error(StatusCode::kFailedPrecondition,
                "wanted cuda:" + std::to_string(index) + "; this machine has " +
                    std::to_string(count) + " usable CUDA devices",
                "device");
  }
  cudaDeviceProp properties;
  const cudaError_t result = cudaGetDeviceProperties(&properties, index);
  if (result != cudaSuccess) {
    throw Error(StatusCode::kFailedPrecondition,
                "wanted the properties of cuda:" + std::to_string(index) + "; " +
                    cudaGetErrorString(result),
                "device");
  }
  DeviceInfo info;
  info.type = DeviceInfo::Type::kCuda;
  info.index = index;
  info.major = properties.major;
  info.minor = properties.minor;
  info.name = properties.name;
  return info;
}

}  // namespace denoised
