// Stands in for block_sparse_launch.cc in builds without CUDA.
#include "backends/cuda/block_sparse_launch.h"
#include "backends/error.h"

namespace denoised {
namespace {

[[noreturn]] void RefuseCuda() {
  throw Error(StatusCode::kFailedPrecondition,
              "wanted a CUDA kernel; this build has none (configure with -DDENOISED_CUDA=ON, "
              "preset \"cuda\")");
}

}  // namespace

std::optional<std::string> CudaKernelLimits(const AttentionSpec&, const DeviceInfo&, Admission) {
  return "its kernel for CUDA is not in this build; on the CPU it runs";
}

DevicePartition::DevicePartition(const Partition&, const at::Device&) { RefuseCuda(); }
DeviceGeometry::DeviceGeometry(const Partition& queries, const Partition& keys,
                               const at::Device& device)
    : queries(queries, device), keys(keys, device) {}
at::Tensor BlockMeansCuda(const at::Tensor&, const DevicePartition&) { RefuseCuda(); }
at::Tensor BlockScoresCuda(const at::Tensor&, const at::Tensor&, float, bool) { RefuseCuda(); }
DevicePlan LargestPlanCuda(const at::Tensor&, const DeviceGeometry&, int64_t) { RefuseCuda(); }
at::Tensor AddCoarseCuda(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&) {
  RefuseCuda();
}
DevicePlan DensePlanOnDevice(int64_t, int64_t, const at::Device&) { RefuseCuda(); }
DevicePlan UploadPlan(const kernels::BlockPlan&, const at::Device&) { RefuseCuda(); }
at::Tensor BlockSparseForwardCuda(const AttentionInputs&, const DevicePlan&,
                                  std::optional<HalfKernel>) {
  RefuseCuda();
}

}  // namespace denoised
