// SAGE_ATTN and SAGE_SLA_ATTN.
#include "backends/attention_call.h"
#include "backends/block_sparse_forward.h"
#include "backends/cuda/block_sparse_launch.h"
#include "backends/quantised_backends.h"

namespace denoised {

std::optional<std::string> SageBackend::Supports(const AttentionSpec& spec,
                                                 const DeviceInfo& device) const {
  return Int8KernelLimits(spec, device, admission_);
}

AttentionCost SageBackend::Estimate(const AttentionSpec& spec, const std::string&,
                                    int64_t rows) const {
  return {KernelBytes(spec, rows), DenseMultiplyAdds(spec, rows)};
}

at::Tensor SageBackend::Forward(const AttentionInputs& inputs,
                                const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  if (inputs.query.is_cuda()) {
    const at::Device device = inputs.query.device();
    return BlockSparseForwardCuda(
        inputs, DensePlanOnDevice(inputs.query.size(1), inputs.key.size(1), device),
        HalfKernel::kInt8);
  }
  return BlockSparseForwardInt8(
      inputs, kernels::DensePlan(inputs.query.size(1), inputs.key.size(1), inputs.causal));
}

std::optional<std::string> SageSlaBackend::Supports(const AttentionSpec& spec,
                                                    const DeviceInfo& device) const {
  if (auto reason = Int8KernelLimits(spec, device, admission())) return reason;
  return SlaBackend::Supports(spec, device);
}

}  // namespace denoised
