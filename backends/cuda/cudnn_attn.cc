#include "backends/cuda/cudnn_attn.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cudnn/Handle.h>
#include <c10/cuda/CUDAGuard.h>

#include <utility>
#include <vector>

#include "backends/attention_call.h"
#include "backends/cuda/cudnn_plans.h"
#include "backends/cuda/flash3.h"
#include "backends/error.h"
#include "backends/parameters.h"

namespace denoised {
namespace {

constexpr float kE4m3Most = 448.0f;
// Probabilities are at most 1; a power of two costs no rounding.
constexpr float kProbabilityScale = 256.0f;

cudnn::Layout LayoutOf(const at::Tensor& x) {
  return {{x.size(0), x.size(2), x.size(1), x.size(3)},
          {x.stride(0), x.stride(2), x.stride(1), x.stride(3)}};
}

// cuDNN wants rows of D at 16-byte addresses.
at::Tensor Aligned(const at::Tensor& x) {
  const bool fits = x.stride(3) == 1 && x.stride(0) % 8 == 0 && x.stride(1) % 8 == 0 &&
                    x.stride(2) % 8 == 0 &&
                    reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

cudnn::PlanKey KeyOf(const AttentionInputs& in) {
  return {in.query.device().index(),   in.query.scalar_type(),
          LayoutOf(in.query),          LayoutOf(in.key),
          LayoutOf(in.value),          in.causal,
          static_cast<float>(in.scale)};
}

cudnn::Tensors TensorsOf(const AttentionInputs& in, const at::Tensor& out) {
  return {{cudnn::kQuery, const_cast<void*>(in.query.const_data_ptr())},
          {cudnn::kKey, const_cast<void*>(in.key.const_data_ptr())},
          {cudnn::kValue, const_cast<void*>(in.value.const_data_ptr())},
          {cudnn::kOut, out.mutable_data_ptr()}};
}

// A tensor in e4m3 and the one float32 that undoes its scale, both on the tensor's device.
struct Fp8Tensor {
  at::Tensor bytes, scale, undo;

  explicit Fp8Tensor(const at::Tensor& x) {
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor most = wide.abs().amax();
    scale = at::where(most > 0, kE4m3Most / most, at::ones_like(most));
    undo = scale.reciprocal();
    bytes = (wide * scale).clamp_(-kE4m3Most, kE4m3Most).to(at::kFloat8_e4m3fn).contiguous();
  }
};

// What the builder read.
struct CudnnMetadata final : AttentionMetadata {
  bool fp8 = false;
  std::string canonical;
};

class CudnnBuilder final : public AttentionMetadataBuilder {
 public:
  std::string Canonical(const MetadataRequest& request) override {
    return Read(request)->canonical;
  }

  std::shared_ptr<const AttentionMetadata> Build(const MetadataRequest& request) override {
    return Read(request);
  }

  std::optional<int64_t> StepKind(const MetadataRequest&) override { return 0; }

 private:
  static std::shared_ptr<const CudnnMetadata> Read(const MetadataRequest& request) {
    Parameters parameters(request.parameters_json);
    auto metadata = std::make_shared<CudnnMetadata>();
    metadata->fp8 = parameters.Flag("fp8", false);
    parameters.Finish();
    if (metadata->fp8 && request.spec.head_size % 16 != 0) {
      Parameters::Refuse("fp8", "wanted a head size that is a multiple of 16; got " +
                                    std::to_string(request.spec.head_size));
    }
    metadata->canonical = parameters.Canonical();
    return metadata;
  }
};

void CheckFp8Device(const at::Tensor& x) {
  const cudaDeviceProp& device = *at::cuda::getDeviceProperties(x.device().index());
  if (device.major == 9 && device.minor == 0) return;
  throw Error(StatusCode::kFailedPrecondition,
              "attention.parameters.fp8: wanted compute capability 9.0; " +
                  std::string(device.name) + " has " + std::to_string(device.major) + "." +
                  std::to_string(device.minor));
}

class CudnnBackend final : public AttentionBackend {
 public:
  explicit CudnnBackend(Admission admission) : admission_(admission) {}

  AttnBackend id() const override { return AttnBackend::kCudnnAttn; }
  std::string_view summary() const override { return "cuDNN's flash attention, by its graph API"; }

  // Its workspace, on the device, is known once its plan is made.
  AttentionCost Estimate(const AttentionSpec& spec, const std::string&,
                         int64_t rows) const override {
    return {0, DenseMultiplyAdds(spec, rows)};
  }

  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override {
    if (device.type != DeviceInfo::Type::kCuda) return "it runs on CUDA devices only";
    if (device.major < 8) {
      return "it needs compute capability 8.0; " + device.name + " has " +
             std::to_string(device.major) + "." + std::to_string(device.minor);
    }
    if (spec.dtype != DType::kBFloat16 && spec.dtype != DType::kFloat16) {
      return "it takes bfloat16 and float16; got " + std::string(DTypeName(spec.dtype));
    }
    const int64_t most = device.major == 9 ? 256 : 128;
    if (spec.head_size % 8 != 0 || spec.head_size > most) {
      return "it takes head sizes that are multiples of 8 up to " + std::to_string(most) +
             " on this device; got " + std::to_string(spec.head_size);
    }
    if (spec.has_mask) return "it takes no attention mask";
    if (device.major == 9) return std::nullopt;
    return RefuseUnmeasured(admission_, "its call of cuDNN on compute capability " +
                                            std::to_string(device.major) + ".x");
  }

  std::optional<std::string> Yields(const AttentionSpec& spec,
                                    const DeviceInfo& device) const override {
    if (!spec.Lists(AttnBackend::kFlashAttn) || !Flash3Serves(spec, device)) return std::nullopt;
    return "FLASH_ATTN with FlashAttention-3 is faster here";
  }

  std::unique_ptr<AttentionMetadataBuilder> MakeBuilder() const override {
    return std::make_unique<CudnnBuilder>();
  }

  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override {
    CheckInputs(inputs);
    const c10::cuda::CUDAGuard guard(inputs.query.device());
    AttentionInputs in = inputs;
    in.scale = SoftmaxScale(inputs);
    const auto* own = dynamic_cast<const CudnnMetadata*>(metadata);
    return own != nullptr && own->fp8 ? ForwardFp8(in) : ForwardHalf(in);
  }

 private:
  at::Tensor ForwardHalf(AttentionInputs in) const {
    for (at::Tensor* x : {&in.query, &in.key, &in.value}) *x = Aligned(*x);
    const at::Tensor out =
        at::empty(in.query.sizes(), in.query.options(), at::MemoryFormat::Contiguous);
    Run(KeyOf(in), TensorsOf(in, out), in.query.device());
    return out;
  }

  // A batch row at a time, so that no row's scale depends on the others.
  at::Tensor ForwardFp8(const AttentionInputs& in) const {
    CheckFp8Device(in.query);
    std::vector<at::Tensor> rows;
    for (int64_t row = 0; row < in.query.size(0); ++row) {
      AttentionInputs one = in;
      for (at::Tensor* x : {&one.query, &one.key, &one.value}) *x = x->narrow(0, row, 1);
      rows.push_back(RowFp8(one).to(in.query.scalar_type()));
    }
    return rows.size() == 1 ? rows[0] : at::cat(rows);
  }

  // Float32 [1, S_q, H, D]. An output is a mean of values, so their scale fits it.
  at::Tensor RowFp8(AttentionInputs in) const {
    const Fp8Tensor q(in.query), k(in.key), v(in.value);
    in.query = q.bytes;
    in.key = k.bytes;
    in.value = v.bytes;
    const at::Tensor out = at::empty(q.bytes.sizes(), q.bytes.options());
    const auto scalar = q.scale.options();
    const at::Tensor scale_p = at::full({1}, kProbabilityScale, scalar);
    const at::Tensor undo_p = at::full({1}, 1 / kProbabilityScale, scalar);
    const at::Tensor most = at::empty({2}, scalar);  // cuDNN insists on reporting both
    cudnn::Tensors data = TensorsOf(in, out);
    data[cudnn::kUndoQuery] = q.undo.mutable_data_ptr();
    data[cudnn::kUndoKey] = k.undo.mutable_data_ptr();
    data[cudnn::kUndoValue] = v.undo.mutable_data_ptr();
    data[cudnn::kUndoProbability] = undo_p.mutable_data_ptr();
    data[cudnn::kScaleProbability] = scale_p.mutable_data_ptr();
    data[cudnn::kScaleOut] = v.scale.mutable_data_ptr();
    data[cudnn::kMostProbability] = most.mutable_data_ptr<float>();
    data[cudnn::kMostOut] = most.mutable_data_ptr<float>() + 1;
    Run(KeyOf(in), std::move(data), out.device());
    return out.to(at::kFloat) * v.undo;
  }

  void Run(const cudnn::PlanKey& key, cudnn::Tensors data, const at::Device& device) const {
    // LibTorch's own handle of this thread, set to its current stream.
    const cudnnHandle_t handle = at::native::getCudnnHandle();
    plans_.Get(key, handle)->Run(handle, std::move(data), device);
  }

  const Admission admission_;
  mutable cudnn::PlanCache plans_;
};

}  // namespace

std::unique_ptr<AttentionBackend> MakeCudnnBackend(Admission admission) {
  return std::make_unique<CudnnBackend>(admission);
}

}  // namespace denoised
