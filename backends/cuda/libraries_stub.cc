// Stands in for cudnn_attn.cc and flash3.cc in builds without CUDA.
#include "backends/cuda/cudnn_attn.h"
#include "backends/cuda/flash3.h"
#include "backends/error.h"

namespace denoised {

bool Flash3Installed() { return false; }
bool Flash3Loads() { return false; }
bool Flash3Serves(const AttentionSpec&, const DeviceInfo&) { return false; }
bool Flash3Serves(const AttentionInputs&) { return false; }
at::Tensor Flash3Forward(const AttentionInputs&) {
  throw Error(StatusCode::kFailedPrecondition,
              "wanted FlashAttention-3; this build has none (configure with -DDENOISED_CUDA=ON, "
              "preset \"cuda\")");
}

std::unique_ptr<AttentionBackend> MakeCudnnBackend(Admission) { return nullptr; }

}  // namespace denoised
