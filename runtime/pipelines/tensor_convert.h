// HostTensor and at::Tensor, both ways. Sees ATen: inside the runtime only.
#ifndef DENOISED_RUNTIME_PIPELINES_TENSOR_CONVERT_H_
#define DENOISED_RUNTIME_PIPELINES_TENSOR_CONVERT_H_

#include <ATen/ATen.h>

#include <string>

#include "runtime/job.h"

namespace denoised {

at::ScalarType ToScalarType(DType dtype);
DType FromScalarType(at::ScalarType type);  // throws INTERNAL for a type without a wire name

// A CPU copy. Throws what CheckHostTensor throws, naming `field`.
at::Tensor ToTensor(const HostTensor& tensor, const std::string& field);
HostTensor FromTensor(const at::Tensor& tensor);

// INVALID_ARGUMENT naming `field` where a floating tensor holds NaN or infinity.
void CheckFinite(const at::Tensor& tensor, const std::string& field);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_TENSOR_CONVERT_H_
