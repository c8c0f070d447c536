// What every backend does before its own work: check the tensors of a call, bring the mask into one
// form, and find the softmax scale. Keeps those rules in one place.
#ifndef DENOISED_BACKENDS_ATTENTION_CALL_H_
#define DENOISED_BACKENDS_ATTENTION_CALL_H_

#include <ATen/ATen.h>

#include "backends/attention_backend.h"

namespace denoised {

// Throws INVALID_ARGUMENT naming the tensor: rank 4, equal dtype and device, equal batch, heads and
// head size, key and value of one length, gate shaped like query, nothing empty, the scale not
// negative.
void CheckInputs(const AttentionInputs& inputs);

// With the elements of a head as neighbours, which kernels read as that without looking; the tensor
// itself where it is so already.
at::Tensor HeadSizeInside(const at::Tensor& tensor);

// inputs.scale, or head_size^-0.5 where it is 0.
double SoftmaxScale(const AttentionInputs& inputs);

// True where `scale` is 0 or head_size^-0.5.
bool IsDefaultScale(double scale, int64_t head_size);

// The mask as bool or float on query's device, 4-D and broadcastable to [B, H, S_q, S_kv];
// undefined stays undefined. Integers become "not zero"; [B, S_kv] and [B, S_q, S_kv] gain axes; a
// last axis that is too short is padded in front with "attend", since image tokens stand before
// text tokens. Throws INVALID_ARGUMENT naming "mask" with both lengths where it is too long or does
// not fit.
at::Tensor NormaliseMask(const AttentionInputs& inputs);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ATTENTION_CALL_H_
