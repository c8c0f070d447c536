// What row_kernels.h and fused.h do, for tensors on a CUDA device: one kernel each
// (cuda_rows.h). row_kernels_cuda.cc in builds with CUDA, row_kernels_cuda_stub.cc in the others.
// float32 and bfloat16; on the current stream. Errors: INTERNAL with CUDA's own text.
#ifndef DENOISED_RUNTIME_MODELS_ROW_KERNELS_CUDA_H_
#define DENOISED_RUNTIME_MODELS_ROW_KERNELS_CUDA_H_

#include <ATen/ATen.h>

#include "runtime/models/fused.h"
#include "runtime/models/rope.h"

namespace denoised {

at::Tensor NormModulateCuda(const at::Tensor& x, const at::Tensor& scale_plus_one,
                            const at::Tensor& shift, double eps, at::ScalarType dtype);
at::Tensor NormRmsCuda(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor NormRmsRotateCuda(const at::Tensor& x, const at::Tensor& weight, double eps,
                             const RopeTables& rope, int64_t heads);
// `gate` undefined: Add.
Hidden AddGatedCuda(const Hidden& hidden, const at::Tensor& update, const at::Tensor& gate);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_ROW_KERNELS_CUDA_H_
