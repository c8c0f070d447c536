// Stands in for row_kernels_cuda.cc in builds without CUDA, where no tensor is on such a device.
#include "backends/error.h"
#include "runtime/models/row_kernels_cuda.h"

namespace denoised {
namespace {

[[noreturn]] void RefuseCuda() {
  throw Error(StatusCode::kFailedPrecondition, "wanted a CUDA kernel; this build has none");
}

}  // namespace

at::Tensor NormModulateCuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, double,
                            at::ScalarType) {
  RefuseCuda();
}
at::Tensor NormRmsCuda(const at::Tensor&, const at::Tensor&, double) { RefuseCuda(); }
at::Tensor NormRmsRotateCuda(const at::Tensor&, const at::Tensor&, double, const RopeTables&,
                             int64_t) {
  RefuseCuda();
}
Hidden AddGatedCuda(const Hidden&, const at::Tensor&, const at::Tensor&) { RefuseCuda(); }

}  // namespace denoised
