// CUDNN_ATTN: scaled dot product attention as a graph of cuDNN 9, built with cudnn-frontend.
//
// Serves bfloat16 and float16 on compute capability 8.0 up, head sizes that are multiples of 8 up
// to 128 (256 on 9.0), causal or not, no mask. Tensors go in by their strides, without copies.
// Plans are kept by everything that shapes them; a new shape costs a plan, which takes cuDNN up to
// seconds. Thread-safe.
//
// Its builder reads one parameter, `fp8` (false): queries, keys, values and output in e4m3, one
// scale each for a batch row (448 over the largest magnitude; the output has the values' scale),
// probabilities times 256. On 9.0 only, else Forward throws FAILED_PRECONDITION; head sizes that
// are multiples of 16, else the builder throws INVALID_ARGUMENT. A batch is run row by row.
// cudnn_attn.cc in builds with CUDA, libraries_stub.cc in the others.
#ifndef DENOISED_BACKENDS_CUDA_CUDNN_ATTN_H_
#define DENOISED_BACKENDS_CUDA_CUDNN_ATTN_H_

#include <memory>

#include "backends/admission.h"
#include "backends/attention_backend.h"

namespace denoised {

// Null in builds without CUDA.
std::unique_ptr<AttentionBackend> MakeCudnnBackend(Admission admission);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_CUDA_CUDNN_ATTN_H_
