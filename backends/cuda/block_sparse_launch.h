// Tensors in, tensors out around block_sparse_cuda.h. block_sparse_launch.cc in builds with CUDA,
// cuda_stub.cc in the others.
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_LAUNCH_H_
#define DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_LAUNCH_H_

#include <ATen/ATen.h>

#include <optional>
#include <string>

#include "backends/admission.h"
#include "backends/attention_backend.h"
#include "backends/kernels/block_sparse.h"
#include "backends/kernels/flat_plan.h"
#include "backends/tiling.h"

namespace denoised {

// What the CUDA kernels take: float32, bfloat16 and float16, head sizes to 128, compute capability
// 8.x and 9.0, no mask, not causal; and that they have not run yet.
std::optional<std::string> CudaKernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                            Admission admission);

// A plan in a device's memory.
struct DevicePlan {
  at::Tensor bytes;               // keeps what `view` points to
  at::Tensor row_begin, columns;  // and these, where the lists were made on the device
  kernels::FlatPlanView view;
  bool covers_queries = true;
};

// Copies the plan to the device, on its current stream; it has left host memory when this returns.
DevicePlan UploadPlan(const kernels::BlockPlan& plan, const at::Device& device);

// Means of the partition's blocks of CUDA [B, S, H, D], each head's: float32 [B * H, blocks, D] on
// the device, with the bits of kernels::BlockMeans. Throws INTERNAL with CUDA's own text, as the
// two below.
at::Tensor BlockMeansCuda(const at::Tensor& x, const Partition& partition);

// Products of two results of BlockMeansCuda over `divisor`, product and quotient rounded to
// bfloat16 where asked: float32 [B * H, query blocks, key blocks] on the device, with the bits of
// kernels::Products.
at::Tensor BlockScoresCuda(const at::Tensor& query_means, const at::Tensor& key_means,
                           float divisor, bool bfloat16);

// The plan in which each query block attends its `count` largest scores, chosen on the device as
// LargestIndices chooses. No key block may be longer than kernels::kBlock.
DevicePlan LargestPlanCuda(const at::Tensor& scores, const Partition& queries,
                           const Partition& keys, int64_t count);

// How bfloat16 and float16 are multiplied: mma.sync on every device, wgmma on 9.0 only. mma.sync is
// taken unless wgmma is asked for, until row D4 has been measured with both. kInt8 is mma.sync with
// q k^T in int8 (cuda/block_sparse_int8_cuda.h) and takes no float32.
enum class HalfKernel : uint8_t { kMmaSync, kWgmma, kInt8 };

// Attention of checked CUDA inputs without mask, not causal, over the plan's blocks, on the current
// stream of the inputs' device. Fresh contiguous [B, S_q, H, D] of the inputs' dtype. Throws
// INTERNAL with CUDA's own text where the launch fails, FAILED_PRECONDITION where the inputs do not
// fit the kernel.
at::Tensor BlockSparseForwardCuda(const AttentionInputs& inputs, const DevicePlan& plan,
                                  HalfKernel kernel = HalfKernel::kMmaSync);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_LAUNCH_H_
