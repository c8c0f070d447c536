// FlashAttention-3 (arXiv 2407.08608) through the library of the wheel fa3-fwd, which registers
// `fa3_fwd::fwd` with LibTorch's dispatcher when it is opened; no Python runs. flash3.cc in builds
// with CUDA, libraries_stub.cc in the others.
#ifndef DENOISED_BACKENDS_CUDA_FLASH3_H_
#define DENOISED_BACKENDS_CUDA_FLASH3_H_

#include <ATen/ATen.h>

#include "backends/attention_backend.h"

namespace denoised {

// Whether the library is where the build was told that it is. Does not open it.
bool Flash3Installed();

// Whether it opens and its operator is the one that Flash3Forward knows how to call. Needs no
// device. Opens it at the first call; thread-safe.
bool Flash3Loads();

// Whether calls of the spec, or these CUDA inputs, can go through it: compute capability 9.0,
// bfloat16, head size 128, no mask, causal for equal lengths only, and Flash3Loads.
bool Flash3Serves(const AttentionSpec& spec, const DeviceInfo& device);
bool Flash3Serves(const AttentionInputs& inputs);

// Checked inputs that Flash3Serves. Fresh contiguous [B, S_q, H, D]. Causal counts from the last
// key, so the caller passes equal lengths then.
at::Tensor Flash3Forward(const AttentionInputs& inputs);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_CUDA_FLASH3_H_
