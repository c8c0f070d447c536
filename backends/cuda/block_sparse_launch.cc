#include "backends/cuda/block_sparse_launch.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "backends/attention_call.h"
#include "backends/cuda/block_means_cuda.h"
#include "backends/cuda/block_sparse_cuda.h"
#include "backends/error.h"

namespace denoised {
namespace {

constexpr int64_t kChunk = 8;  // elements that the tensor-core kernel copies at once

std::optional<std::string> DeviceLimits(const DeviceInfo& device) {
  if (device.major == 8 || (device.major == 9 && device.minor == 0)) return std::nullopt;
  return "its CUDA kernel is compiled for compute capability 8.x and 9.0; " + device.name +
         " has " + std::to_string(device.major) + "." + std::to_string(device.minor);
}

// D as neighbours, and for the half kernel in whole chunks of 16 bytes at 16-byte addresses.
at::Tensor Aligned(at::Tensor x) {
  if (x.scalar_type() == at::kFloat) return x.stride(3) == 1 ? x : x.contiguous();
  const int64_t rest = x.size(3) % kChunk;
  if (rest != 0) x = at::constant_pad_nd(x, {0, kChunk - rest}, 0);
  const bool fits = x.stride(3) == 1 && x.stride(0) % kChunk == 0 && x.stride(1) % kChunk == 0 &&
                    x.stride(2) % kChunk == 0 &&
                    reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

cuda::DeviceView ViewOf(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

void Check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw Error(StatusCode::kInternal, std::string("wanted to launch ") + what +
                                         "; CUDA says: " + cudaGetErrorString(result));
}

at::Tensor UploadInts(const std::vector<int32_t>& values, const at::Device& device) {
  return at::tensor(at::ArrayRef<int32_t>(values), at::kInt).to(device);
}

// Position of each block's first token, and the end.
std::vector<int32_t> Begins(const Partition& partition) {
  std::vector<int32_t> begins = {0};
  for (int32_t length : partition.lengths) begins.push_back(begins.back() + length);
  return begins;
}

cuda::PooledElement PooledElementOf(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return cuda::PooledElement::kFloat32;
  return x.scalar_type() == at::kBFloat16 ? cuda::PooledElement::kBFloat16
                                          : cuda::PooledElement::kFloat16;
}

cudaError_t Launch(const cuda::BlockSparseArgs& args, at::ScalarType dtype, HalfKernel kernel,
                   cudaStream_t stream) {
  if (dtype == at::kFloat) return cuda::LaunchBlockSparseFloat(args, stream);
  const bool bfloat16 = dtype == at::kBFloat16;
  return kernel == HalfKernel::kWgmma ? cuda::LaunchBlockSparseHopper(args, bfloat16, stream)
                                      : cuda::LaunchBlockSparseHalf(args, bfloat16, stream);
}

}  // namespace

std::optional<std::string> CudaKernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                            Admission admission) {
  if (auto reason = DeviceLimits(device)) return reason;
  if (spec.dtype != DType::kFloat32 && spec.dtype != DType::kBFloat16 &&
      spec.dtype != DType::kFloat16) {
    return "its CUDA kernel takes float32, bfloat16 and float16; got " +
           std::string(DTypeName(spec.dtype));
  }
  if (spec.head_size < 1 || spec.head_size > cuda::kMaxHeadSize) {
    return "its CUDA kernel takes head sizes up to " + std::to_string(cuda::kMaxHeadSize) +
           "; got " + std::to_string(spec.head_size);
  }
  if (spec.has_mask || spec.causal) return "its CUDA kernel takes no mask and is not causal";
  return RefuseUnmeasured(admission, "its CUDA kernel");
}

DevicePlan UploadPlan(const kernels::BlockPlan& plan, const at::Device& device) {
  const kernels::FlatPlan flat = kernels::FlatPlan::Flatten(plan);
  const at::Tensor host = at::from_blob(const_cast<std::byte*>(flat.bytes().data()),
                                        {static_cast<int64_t>(flat.bytes().size())}, at::kByte);
  const at::Tensor bytes = host.to(device);
  return {bytes, flat.ViewAt(bytes.const_data_ptr()), plan.covers_queries};
}

at::Tensor BlockSparseForwardCuda(const AttentionInputs& inputs, const DevicePlan& plan,
                                  HalfKernel kernel) {
  if (inputs.mask.defined() || inputs.causal) {
    throw Error(StatusCode::kFailedPrecondition,
                "wanted neither a mask nor causal attention of the CUDA kernel; got one");
  }
  const c10::cuda::CUDAGuard guard(inputs.query.device());
  const at::Tensor q = Aligned(inputs.query), k = Aligned(inputs.key), v = Aligned(inputs.value);
  at::Tensor out =
      plan.covers_queries ? at::empty(q.sizes(), q.options()) : at::zeros(q.sizes(), q.options());
  cuda::BlockSparseArgs args;
  args.batch = static_cast<int32_t>(q.size(0));
  args.heads = static_cast<int32_t>(q.size(2));
  args.head_size = static_cast<int32_t>(q.size(3));
  args.q_len = static_cast<int32_t>(q.size(1));
  args.query = ViewOf(q);
  args.key = ViewOf(k);
  args.value = ViewOf(v);
  args.out = out.mutable_data_ptr();
  args.scale = static_cast<float>(SoftmaxScale(inputs));
  args.plan = plan.view;
  Check(Launch(args, q.scalar_type(), kernel, c10::cuda::getCurrentCUDAStream(q.device().index())),
        "the block-sparse kernel");
  return out.size(3) == inputs.query.size(3) ? out
                                             : out.narrow(3, 0, inputs.query.size(3)).contiguous();
}

at::Tensor BlockMeansCuda(const at::Tensor& x, const Partition& partition) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor rows = x.stride(3) == 1 ? x : x.contiguous();
  const at::Tensor order = UploadInts(partition.order, x.device());
  const at::Tensor begin = UploadInts(Begins(partition), x.device());
  at::Tensor means = at::empty({x.size(0) * x.size(2), partition.blocks(), x.size(3)},
                               x.options().dtype(at::kFloat));
  cuda::BlockMeansArgs args;
  args.view = ViewOf(rows);
  args.element = PooledElementOf(rows);
  args.batch = static_cast<int32_t>(x.size(0));
  args.heads = static_cast<int32_t>(x.size(2));
  args.head_size = static_cast<int32_t>(x.size(3));
  args.blocks = static_cast<int32_t>(partition.blocks());
  args.order = order.const_data_ptr<int32_t>();
  args.begin = begin.const_data_ptr<int32_t>();
  args.means = means.mutable_data_ptr<float>();
  Check(cuda::LaunchBlockMeans(args, c10::cuda::getCurrentCUDAStream(x.device().index())),
        "the pooling kernel");
  return means.cpu();
}

}  // namespace denoised
