// Tensors in, tensors out around block_sparse_cuda.h. block_sparse_launch.cc in builds with CUDA,
// kernels_stub.cc in the others.
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
// 8.x and 9.0, no mask, not causal; and that they have not run on 8.x yet.
std::optional<std::string> CudaKernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                            Admission admission);

// A plan in a device's memory.
struct DevicePlan {
  at::Tensor bytes;               // keeps what `view` points to
  at::Tensor row_begin, columns;  // and these, where the lists were made on the device
  kernels::FlatPlanView view;
  bool covers_queries = true;
};

// Copies the plan to the device, on its current stream; it has left host memory when this returns,
// which waits for the stream.
DevicePlan UploadPlan(const kernels::BlockPlan& plan, const at::Device& device);

// kernels::DensePlan, not causal, made on the device: waits for nothing.
DevicePlan DensePlanOnDevice(int64_t q_len, int64_t kv_len, const at::Device& device);

// Partitions of queries and keys on a device. Made once a job: the upload waits for the stream.
struct DevicePartition {
  explicit DevicePartition(const Partition& partition, const at::Device& device);

  at::Tensor order;  // [tokens] int32: token at each position
  at::Tensor begin;  // [blocks + 1] int32: position of each block's first token, and the end
  int64_t blocks;
};
struct DeviceGeometry {
  DeviceGeometry(const Partition& queries, const Partition& keys, const at::Device& device);

  DevicePartition queries, keys;
  DevicePlan plan;          // their blocks, without lists
  at::Tensor block_of_row;  // [plan's query blocks] int32: the block of `queries` that it is of
};

// Means of the partition's blocks of CUDA [B, S, H, D], each head's: float32 [B * H, blocks, D] on
// the device, with the bits of kernels::BlockMeans. Throws INTERNAL with CUDA's own text, as the
// ones below. None of them waits for the device.
at::Tensor BlockMeansCuda(const at::Tensor& x, const DevicePartition& partition);

// Products of two results of BlockMeansCuda over `divisor`, product and quotient rounded to
// bfloat16 where asked: float32 [B * H, query blocks, key blocks] on the device, with the bits of
// kernels::Products.
at::Tensor BlockScoresCuda(const at::Tensor& query_means, const at::Tensor& key_means,
                           float divisor, bool bfloat16);

// The plan in which each query block attends its `count` largest scores, chosen on the device as
// LargestIndices chooses. No key block may be longer than kernels::kBlock.
DevicePlan LargestPlanCuda(const at::Tensor& scores, const DeviceGeometry& geometry, int64_t count);

// fine + coarse * gate in one pass, rounded once: `fine` and `gate` are CUDA [B, S, H, D] of one
// dtype, the gate undefined where it is 1; `coarse` is float32 [B * H, blocks, D] and
// `block_of_token` [S] int32 says which of them is a token's. Fresh, contiguous, of fine's dtype.
at::Tensor AddCoarseCuda(const at::Tensor& fine, const at::Tensor& coarse, const at::Tensor& gate,
                         const at::Tensor& block_of_token);

// How bfloat16 and float16 are multiplied: mma.sync on every device, wgmma on 9.0 only. kInt8 is
// mma.sync with q k^T in int8 (cuda/block_sparse_int8_cuda.h) and takes no float32.
enum class HalfKernel : uint8_t { kMmaSync, kWgmma, kInt8 };

// Attention of checked CUDA inputs without mask, not causal, over the plan's blocks, on the current
// stream of the inputs' device. Fresh contiguous [B, S_q, H, D] of the inputs' dtype. `kernel`:
// empty = the fastest exact one of the device (row D4). Throws INTERNAL with CUDA's own text where
// the launch fails, FAILED_PRECONDITION where the inputs do not fit the kernel.
at::Tensor BlockSparseForwardCuda(const AttentionInputs& inputs, const DevicePlan& plan,
                                  std::optional<HalfKernel> kernel = std::nullopt);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_LAUNCH_H_
