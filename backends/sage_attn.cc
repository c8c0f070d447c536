// SAGE_ATTN and SAGE_SLA_ATTN.
#include "backends/attention_call.h"
#include "backends/block_sparse_forward.h"
#include "backends/quantised_backends.h"

namespace denoised {
namespace {

std::optional<std::string> Int8Limits(const AttentionSpec& spec, const DeviceInfo& device) {
  if (auto reason = CpuKernelLimits(spec, device)) return reason;
  if (device.avx512_vnni && device.avx512_bf16) return std::nullopt;
  return "its int8 kernel needs AVX-512 VNNI and AVX-512 BF16; " + device.name + " lacks them";
}

}  // namespace

std::optional<std::string> SageBackend::Supports(const AttentionSpec& spec,
                                                 const DeviceInfo& device) const {
  return Int8Limits(spec, device);
}

at::Tensor SageBackend::Forward(const AttentionInputs& inputs,
                                const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  return BlockSparseForward(
      inputs, kernels::DensePlan(inputs.query.size(1), inputs.key.size(1), inputs.causal),
      Admission::kMeasured, kernels::Isa::kAvx512Vnni);
}

std::optional<std::string> SageSlaBackend::Supports(const AttentionSpec& spec,
                                                    const DeviceInfo& device) const {
  if (auto reason = Int8Limits(spec, device)) return reason;
  return SlaBackend::Supports(spec, device);
}

at::Tensor SageSlaBackend::Attend(const SparseCall& call) const {
  return BlockSparseForward(call.inputs, MakePlan(call), admission(), kernels::Isa::kAvx512Vnni);
}

}  // namespace denoised
