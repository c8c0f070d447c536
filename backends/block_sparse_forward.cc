#include "backends/block_sparse_forward.h"

#include <algorithm>
#include <limits>

#include "backends/attention_call.h"
#include "backends/cuda/block_sparse_launch.h"
#include "backends/intra_op.h"

namespace denoised {
namespace {

using kernels::BlockSparseCall;
using kernels::Element;
using kernels::View;

const DeviceInfo& ThisCpu() {
  static const DeviceInfo cpu = QueryCpu();
  return cpu;
}

View ViewOf(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// The mask as additive float32; a boolean one hides with -inf.
at::Tensor AdditiveMask(const AttentionInputs& inputs) {
  const at::Tensor mask = NormaliseMask(inputs);
  if (!mask.defined() || mask.is_floating_point()) {
    return mask.defined() ? mask.to(at::kFloat) : mask;
  }
  return at::zeros(mask.sizes(), at::kFloat)
      .masked_fill_(mask.logical_not(), -std::numeric_limits<float>::infinity());
}

void SetBias(const at::Tensor& bias, BlockSparseCall* call) {
  if (!bias.defined()) return;
  call->bias = bias.const_data_ptr<float>();
  for (int axis = 0; axis < 4; ++axis) {
    call->bias_strides[axis] = bias.size(axis) == 1 ? 0 : bias.stride(axis);
  }
}

// What the kernels take of inputs in a dtype of theirs; keeps the tensors that the call points to.
struct KernelInputs {
  explicit KernelInputs(const AttentionInputs& inputs)
      : q(HeadSizeInside(inputs.query)),
        k(HeadSizeInside(inputs.key)),
        v(HeadSizeInside(inputs.value)) {
    call.element = q.scalar_type() == at::kFloat ? Element::kFloat32 : Element::kBFloat16;
    call.batch = q.size(0);
    call.heads = q.size(2);
    call.head_size = q.size(3);
    call.q_len = q.size(1);
    call.kv_len = k.size(1);
    call.query = ViewOf(q);
    call.key = ViewOf(k);
    call.value = ViewOf(v);
    call.scale = static_cast<float>(SoftmaxScale(inputs));
    call.causal = inputs.causal;
  }
  const at::Tensor q, k, v;
  BlockSparseCall call;
};

at::Tensor InKernelDtype(const AttentionInputs& inputs, const at::Tensor& bias,
                         const kernels::BlockPlan& plan, kernels::Isa isa, int64_t last_key_count) {
  KernelInputs kernel(inputs);
  kernel.call.last_key_count = last_key_count;
  at::Tensor out = plan.covers_queries ? at::empty(kernel.q.sizes(), kernel.q.options())
                                       : at::zeros(kernel.q.sizes(), kernel.q.options());
  kernel.call.out = out.mutable_data_ptr();
  SetBias(bias, &kernel.call);
  kernels::BlockSparseAttention(kernel.call, plan, isa, RunOnIntraOpThreads);
  return out;
}

AttentionInputs Widened(const AttentionInputs& inputs) {
  AttentionInputs wide = inputs;
  for (at::Tensor* tensor : {&wide.query, &wide.key, &wide.value}) *tensor = tensor->to(at::kFloat);
  return wide;
}

Element ElementOf(const at::Tensor& query) {
  return query.scalar_type() == at::kBFloat16 ? Element::kBFloat16 : Element::kFloat32;
}

std::optional<std::string> CudaInt8Limits(const AttentionSpec& spec, const DeviceInfo& device,
                                          Admission admission) {
  if (auto reason = CudaKernelLimits(spec, device, admission)) return reason;
  if (spec.dtype == DType::kFloat32) {
    return "its int8 CUDA kernel takes bfloat16 and float16; got float32";
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> CpuKernelLimits(const AttentionSpec& spec, const DeviceInfo& device) {
  if (device.type != DeviceInfo::Type::kCpu) {
    return "its kernel is written for the CPU";
  }
  if (spec.dtype != DType::kFloat32 && spec.dtype != DType::kBFloat16 &&
      spec.dtype != DType::kFloat16) {
    return "the CPU kernel takes float32, bfloat16 and float16; got " +
           std::string(DTypeName(spec.dtype));
  }
  if (spec.head_size < 1 || spec.head_size > kernels::kMaxHeadSize) {
    return "the CPU kernel takes head sizes up to " + std::to_string(kernels::kMaxHeadSize) +
           "; got " + std::to_string(spec.head_size);
  }
  return std::nullopt;
}

std::optional<std::string> KernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                        Admission admission) {
  return device.type == DeviceInfo::Type::kCpu ? CpuKernelLimits(spec, device)
                                               : CudaKernelLimits(spec, device, admission);
}

std::optional<std::string> Int8KernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                            Admission admission) {
  return device.type == DeviceInfo::Type::kCpu ? CpuKernelLimits(spec, device)
                                               : CudaInt8Limits(spec, device, admission);
}

at::Tensor BlockSparseForward(const AttentionInputs& inputs, const kernels::BlockPlan& plan,
                              std::optional<kernels::Isa> isa, int64_t last_key_count) {
  if (inputs.query.is_cuda()) {
    TORCH_CHECK(last_key_count == 1, "keys count once on CUDA");
    return BlockSparseForwardCuda(inputs, UploadPlan(plan, inputs.query.device()));
  }
  const at::Tensor bias = AdditiveMask(inputs);
  const kernels::Isa chosen = isa.value_or(kernels::BestIsa(ElementOf(inputs.query), ThisCpu()));
  if (inputs.query.scalar_type() != at::kHalf) {
    return InKernelDtype(inputs, bias, plan, chosen, last_key_count);
  }
  return InKernelDtype(Widened(inputs), bias, plan, chosen, last_key_count).to(at::kHalf);
}

at::Tensor BlockSparseForwardInt8(const AttentionInputs& inputs, const kernels::BlockPlan& plan) {
  if (inputs.query.is_cuda()) {
    return BlockSparseForwardCuda(inputs, UploadPlan(plan, inputs.query.device()),
                                  HalfKernel::kInt8);
  }
  return BlockSparseForward(inputs, plan, kernels::Int8Isa(ThisCpu()));
}

at::Tensor BandForward(const AttentionInputs& inputs, const kernels::BandMaker& bands,
                       BandScores scores) {
  const bool half = inputs.query.scalar_type() == at::kHalf;
  const kernels::Isa isa = scores == BandScores::kInt8
                               ? kernels::Int8Isa(ThisCpu())
                               : kernels::BestIsa(ElementOf(inputs.query), ThisCpu());
  KernelInputs kernel(half ? Widened(inputs) : inputs);
  at::Tensor out = at::empty(kernel.q.sizes(), kernel.q.options());
  kernel.call.out = out.mutable_data_ptr();
  kernels::BandAttention(kernel.call, bands, isa, RunOnIntraOpThreads);
  return half ? out.to(at::kHalf) : out;
}

}  // namespace denoised
