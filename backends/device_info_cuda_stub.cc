// Stands in for device_info_cuda.cc in builds without CUDA.
#include "backends/attention_spec.h"
#include "backends/error.h"

namespace denoised {

DeviceInfo QueryCuda(int index) {
  throw Error(StatusCode::kFailedPrecondition,
              "wanted cuda:" + std::to_string(index) +
                  "; this build has no CUDA (configure with -DDENOISED_CUDA=ON, preset \"cuda\")",
              "device");
}

}  // namespace denoised
