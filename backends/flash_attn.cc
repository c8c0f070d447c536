// FLASH_ATTN: LibTorch's flash kernel of the device, called by name so that nothing else can
// answer.
#include "backends/attention_call.h"
#include "backends/dense_backends.h"

namespace denoised {
namespace {

std::optional<std::string> CpuLimits(const AttentionSpec& spec) {
  if (spec.dtype == DType::kFloat32 || spec.dtype == DType::kBFloat16 ||
      spec.dtype == DType::kFloat16) {
    return std::nullopt;
  }
  return "the CPU flash kernel takes float32, bfloat16 and float16; got " +
         std::string(DTypeName(spec.dtype));
}

std::optional<std::string> CudaLimits(const AttentionSpec& spec, const DeviceInfo& device) {
  if (device.major < 8) {
    return "the CUDA flash kernel needs compute capability 8.0; " + device.name + " has " +
           std::to_string(device.major) + "." + std::to_string(device.minor);
  }
  if (spec.dtype != DType::kBFloat16 && spec.dtype != DType::kFloat16) {
    return "the CUDA flash kernel takes bfloat16 and float16; got " +
           std::string(DTypeName(spec.dtype));
  }
  if (spec.head_size % 8 != 0 || spec.head_size > 256) {
    return "the CUDA flash kernel takes head sizes that are multiples of 8 up to 256; got " +
           std::to_string(spec.head_size);
  }
  if (spec.has_mask) return "the CUDA flash kernel takes no mask";
  return std::nullopt;
}

at::Tensor HeadsFirst(const at::Tensor& tensor) { return tensor.permute({0, 2, 1, 3}); }

// The kernels read a head's elements as neighbours, and do not look whether they are.
at::Tensor KernelView(const at::Tensor& tensor) {
  return HeadsFirst(tensor.stride(3) == 1 ? tensor : tensor.contiguous());
}

at::Tensor OnCpu(const AttentionInputs& inputs) {
  at::Tensor mask = NormaliseMask(inputs);
  std::optional<at::Tensor> additive;
  if (mask.defined() && mask.scalar_type() == at::kBool) {
    additive = at::zeros(mask.sizes(), inputs.query.options())
                   .masked_fill_(mask.logical_not(), -std::numeric_limits<double>::infinity());
  } else if (mask.defined()) {
    additive = mask.to(inputs.query.scalar_type());
  }
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
      KernelView(inputs.query), KernelView(inputs.key), KernelView(inputs.value), 0.0,
      inputs.causal, additive, SoftmaxScale(inputs)));
}

at::Tensor OnCuda(const AttentionInputs& inputs) {
  return std::get<0>(at::_scaled_dot_product_flash_attention(
      KernelView(inputs.query), KernelView(inputs.key), KernelView(inputs.value), 0.0,
      inputs.causal, /*return_debug_mask=*/false, SoftmaxScale(inputs)));
}

}  // namespace

std::optional<std::string> FlashAttnBackend::Supports(const AttentionSpec& spec,
                                                      const DeviceInfo& device) const {
  return device.type == DeviceInfo::Type::kCpu ? CpuLimits(spec) : CudaLimits(spec, device);
}

at::Tensor FlashAttnBackend::Forward(const AttentionInputs& inputs,
                                     const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  const at::Tensor out = inputs.query.is_cuda() ? OnCuda(inputs) : OnCpu(inputs);
  return HeadsFirst(out).contiguous();
}

}  // namespace denoised
