#include "runtime/models/row_kernels_cuda.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "backends/error.h"
#include "runtime/models/cuda_rows.h"

namespace denoised {
namespace {

void Check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw Error(StatusCode::kInternal, std::string("wanted to launch the kernel of ") + what +
                                         "; CUDA says: " + cudaGetErrorString(result));
}

// x [B, S, D], or rows [.., D] as one batch row.
cuda::RowShape ShapeOf(const at::Tensor& x) {
  const int64_t width = x.size(-1);
  if (x.dim() == 3) return {x.size(0), x.size(1), static_cast<int>(width)};
  return {1, x.numel() / width, static_cast<int>(width)};
}

// Of [B, 1 or S, D], the last axis dense.
cuda::Companion CompanionOf(const at::Tensor& x) {
  return {x.const_data_ptr<float>(), x.stride(0), x.size(1) == 1 ? 0 : x.stride(1)};
}

bool IsBFloat16(at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "rows of float32 or bfloat16");
  return dtype == at::kBFloat16;
}

cudaStream_t StreamOf(const at::Tensor& x) {
  return c10::cuda::getCurrentCUDAStream(x.device().index());
}

at::Tensor Rms(const at::Tensor& x, const at::Tensor& weight, double eps,
               const cuda::Rotation& rotation) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  Check(cuda::LaunchNormRms(in.const_data_ptr(), weight.const_data_ptr(), static_cast<float>(eps),
                            ShapeOf(in), rotation, IsBFloat16(in.scalar_type()),
                            out.mutable_data_ptr(), StreamOf(in)),
        "a norm");
  return out;
}

}  // namespace

at::Tensor NormModulateCuda(const at::Tensor& x, const at::Tensor& scale_plus_one,
                            const at::Tensor& shift, double eps, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options().dtype(dtype));
  Check(cuda::LaunchNormModulate(in.const_data_ptr<float>(), CompanionOf(scale_plus_one),
                                 CompanionOf(shift), static_cast<float>(eps), ShapeOf(in),
                                 IsBFloat16(dtype), out.mutable_data_ptr(), StreamOf(in)),
        "a modulated norm");
  return out;
}

at::Tensor NormRmsCuda(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return Rms(x, weight, eps, {});
}

at::Tensor NormRmsRotateCuda(const at::Tensor& x, const at::Tensor& weight, double eps,
                             const RopeTables& rope, int64_t heads) {
  const int64_t head_size = x.size(2) / heads;
  return Rms(x, weight, eps,
             {rope.cos.const_data_ptr<float>(), rope.sin.const_data_ptr<float>(),
              static_cast<int>(head_size)})
      .view({x.size(0), x.size(1), heads, head_size});
}

Hidden AddGatedCuda(const Hidden& hidden, const at::Tensor& update, const at::Tensor& gate) {
  const c10::cuda::CUDAGuard guard(update.device());
  const at::Tensor in = hidden.value.contiguous(), more = update.contiguous();
  const bool half = IsBFloat16(in.scalar_type());
  Hidden out;
  out.value = at::empty(in.sizes(), in.options());
  out.wide = half ? at::empty(in.sizes(), in.options().dtype(at::kFloat)) : out.value;
  Check(cuda::LaunchAddGated(in.const_data_ptr(), more.const_data_ptr(),
                             gate.defined() ? CompanionOf(gate) : cuda::Companion(), ShapeOf(in),
                             half, out.value.mutable_data_ptr(),
                             half ? out.wide.mutable_data_ptr<float>() : nullptr, StreamOf(in)),
        "a gated sum");
  return out;
}

}  // namespace denoised
