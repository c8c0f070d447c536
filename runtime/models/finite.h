// Looking at every number of a tensor once.
#ifndef DENOISED_RUNTIME_MODELS_FINITE_H_
#define DENOISED_RUNTIME_MODELS_FINITE_H_

#include <ATen/core/Tensor.h>

namespace denoised {

// Whether no element is NaN or infinite. Any shape and device; floating point.
bool AllFinite(const at::Tensor& x);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_FINITE_H_
