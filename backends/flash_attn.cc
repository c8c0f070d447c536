// FLASH_ATTN: on the CPU the block-sparse kernel with the full list of blocks; on CUDA LibTorch's
// flash kernel, called by name so that nothing else can answer, or FlashAttention-3.
#include <algorithm>
#include <cmath>

#include "backends/attention_call.h"
#include "backends/block_sparse_forward.h"
#include "backends/cuda/flash3.h"
#include "backends/dense_backends.h"

namespace denoised {
namespace {

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
  if (spec.causal && spec.q_len != spec.kv_len) {
    return "the CUDA flash kernel is causal for as many queries as keys; got " +
           std::to_string(spec.q_len) + " and " + std::to_string(spec.kv_len);
  }
  return std::nullopt;
}

// [B * S, H, D].
at::Tensor InOneSequence(const at::Tensor& tensor) { return HeadSizeInside(tensor).flatten(0, 1); }

// Where each row of the batch begins, and where the last one ends.
at::Tensor BeginsOf(const at::Tensor& tensor) {
  const int64_t length = tensor.size(1), end = tensor.size(0) * length;
  return at::arange(0, end + 1, length, tensor.options().dtype(at::kInt));
}

at::Tensor Dense(const AttentionInputs& inputs, int64_t last_key_count = 1) {
  const auto plan = kernels::DensePlan(inputs.query.size(1), inputs.key.size(1), inputs.causal);
  return BlockSparseForward(inputs, plan, std::nullopt, last_key_count);
}

// Keys that are alike are one key that counts for all of them.
at::Tensor Shortened(const AttentionInputs& inputs, int64_t alike_from) {
  if (alike_from + 1 == inputs.key.size(1)) return Dense(inputs);
  AttentionInputs in = inputs;
  in.key = inputs.key.narrow(1, 0, alike_from + 1);
  in.value = inputs.value.narrow(1, 0, alike_from + 1);
  return Dense(in, inputs.key.size(1) - alike_from);
}

// Whether what a count adds to a score is a number, whatever the scale.
bool CanCount(const AttentionInputs& inputs) {
  const auto scale = static_cast<float>(SoftmaxScale(inputs));
  return std::isfinite(std::log(static_cast<float>(inputs.key.size(1))) / scale);
}

at::Tensor OnCpu(const AttentionInputs& inputs) {
  const std::vector<int64_t>& alike = inputs.alike_from;
  if (alike.empty() || inputs.mask.defined() || inputs.causal || !CanCount(inputs)) {
    return Dense(inputs);
  }
  const int64_t rows = inputs.query.size(0);
  if (std::ranges::count(alike, alike.front()) == rows) return Shortened(inputs, alike.front());
  std::vector<at::Tensor> out;
  for (int64_t row = 0; row < rows; ++row) {
    AttentionInputs one = inputs;
    for (at::Tensor* x : {&one.query, &one.key, &one.value}) *x = x->narrow(0, row, 1);
    out.push_back(Shortened(one, alike[row]));
  }
  return at::cat(out);
}

// FA2 is told sequences, not a batch: of a batch it would part the keys of a row among more blocks
// the fewer rows there are, and the row's bits would depend on its company.
at::Tensor OnCuda(const AttentionInputs& inputs) {
  if (Flash3Serves(inputs)) return Flash3Forward(inputs);
  const at::Tensor &q = inputs.query, &k = inputs.key;
  const at::Tensor out = std::get<0>(at::_flash_attention_forward(
      InOneSequence(q), InOneSequence(k), InOneSequence(inputs.value), BeginsOf(q), BeginsOf(k),
      q.size(1), k.size(1), /*dropout_p=*/0.0, inputs.causal, /*return_debug_mask=*/false,
      SoftmaxScale(inputs)));
  return out.view(q.sizes()).contiguous();
}

}  // namespace

std::string_view FlashAttnBackend::summary() const {
  if (!Flash3Installed()) return "flash attention: own kernel on the CPU, LibTorch's FA2 on CUDA";
  return "flash attention: own kernel on the CPU; on CUDA FA3 for bfloat16 of head size 128 on "
         "9.0, else LibTorch's FA2";
}

std::optional<std::string> FlashAttnBackend::Supports(const AttentionSpec& spec,
                                                      const DeviceInfo& device) const {
  return device.type == DeviceInfo::Type::kCpu ? CpuKernelLimits(spec, device)
                                               : CudaLimits(spec, device);
}

AttentionCost FlashAttnBackend::Estimate(const AttentionSpec& spec, const std::string&,
                                         int64_t rows) const {
  return {KernelBytes(spec, rows), DenseMultiplyAdds(spec, rows)};
}

at::Tensor FlashAttnBackend::Forward(const AttentionInputs& inputs,
                                     const AttentionMetadata* metadata) const {
  CheckInputs(inputs);
  return inputs.query.is_cuda() ? OnCuda(inputs) : OnCpu(inputs);
}

}  // namespace denoised
