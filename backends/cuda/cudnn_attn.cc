#include "backends/cuda/cudnn_attn.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cudnn/Handle.h>
#include <c10/cuda/CUDAGuard.h>
#include <cudnn_frontend.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "backends/attention_call.h"
#include "backends/cuda/flash3.h"
#include "backends/error.h"
#include "backends/parameters.h"

namespace denoised {
namespace {

namespace fe = cudnn_frontend;

constexpr size_t kMaxPlans = 256;  // a plan holds compiled kernels: some MB
constexpr float kE4m3Most = 448.0f;
// Probabilities are at most 1; a power of two costs no rounding.
constexpr float kProbabilityScale = 256.0f;

// Names of tensors in a graph; those after kOut in an fp8 one only.
enum Name : int64_t {
  kQuery = 1,
  kKey,
  kValue,
  kOut,
  kUndoQuery,
  kUndoKey,
  kUndoValue,
  kUndoProbability,
  kScaleProbability,
  kScaleOut,
  kMostProbability,
  kMostOut
};
using Tensors = std::unordered_map<int64_t, void*>;

// cuDNN counts [B, H, S, D], whatever the memory order; so do sizes and strides here.
struct Layout {
  std::vector<int64_t> size, stride;
  auto operator<=>(const Layout&) const = default;
};

// Everything that shapes a plan.
struct PlanKey {
  int device;
  at::ScalarType dtype;  // Float8_e4m3fn: an fp8 graph
  Layout query, key, value;
  bool causal;
  float scale;
  auto operator<=>(const PlanKey&) const = default;
};

Layout LayoutOf(const at::Tensor& x) {
  return {{x.size(0), x.size(2), x.size(1), x.size(3)},
          {x.stride(0), x.stride(2), x.stride(1), x.stride(3)}};
}

// Of a contiguous [B, S_q, H, D].
Layout OutLayout(const PlanKey& key) {
  const int64_t h = key.query.size[1], s = key.query.size[2], d = key.query.size[3];
  return {key.query.size, {s * h * d, d, h * d, 1}};
}

void Check(fe::error_t result, const std::string& what) {
  if (result.is_good()) return;
  throw Error(StatusCode::kInternal,
              "wanted cuDNN to " + what + "; it says: " + result.get_message());
}

std::string ShapeText(const PlanKey& key) {
  const auto& q = key.query.size;
  return "[" + std::to_string(q[0]) + ", " + std::to_string(q[2]) + ", " + std::to_string(q[1]) +
         ", " + std::to_string(q[3]) + "] over " + std::to_string(key.key.size[2]) + " keys";
}

fe::DataType_t DataTypeOf(at::ScalarType dtype) {
  if (dtype == at::kFloat8_e4m3fn) return fe::DataType_t::FP8_E4M3;
  return dtype == at::kBFloat16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF;
}

fe::graph::SDPA_attributes OptionsOf(const PlanKey& key) {
  auto options = fe::graph::SDPA_attributes();
  options.set_name("attention").set_generate_stats(false).set_attn_scale(key.scale);
  if (key.causal) {
    options.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT);  // as LibTorch counts
    options.set_diagonal_band_right_bound(0);
  }
  return options;
}

using GraphTensor = std::shared_ptr<fe::graph::Tensor_attributes>;

// The graph of one key; not planned yet.
class GraphMaker {
 public:
  GraphMaker(const PlanKey& key, fe::graph::Graph* graph) : key_(key), graph_(*graph) {}

  void Make() {
    graph_.set_io_data_type(DataTypeOf(key_.dtype));
    graph_.set_intermediate_data_type(fe::DataType_t::FLOAT);
    graph_.set_compute_data_type(fe::DataType_t::FLOAT);
    const GraphTensor out = key_.dtype == at::kFloat8_e4m3fn ? AttentionFp8() : Attention();
    const Layout layout = OutLayout(key_);
    out->set_output(true).set_uid(kOut).set_dim(layout.size).set_stride(layout.stride);
    out->set_data_type(DataTypeOf(key_.dtype));
  }

 private:
  GraphTensor Attention() {
    return graph_.sdpa(Input("q", kQuery, key_.query), Input("k", kKey, key_.key),
                       Input("v", kValue, key_.value), OptionsOf(key_))[0];
  }

  GraphTensor AttentionFp8() {
    auto [out, statistics, most_probability, most_out] = graph_.sdpa_fp8(
        Input("q", kQuery, key_.query), Input("k", kKey, key_.key), Input("v", kValue, key_.value),
        Scalar("undo_q", kUndoQuery), Scalar("undo_k", kUndoKey), Scalar("undo_v", kUndoValue),
        Scalar("undo_p", kUndoProbability), Scalar("scale_p", kScaleProbability),
        Scalar("scale_out", kScaleOut), OptionsOf(key_));
    SetScalarOutput(most_probability, kMostProbability);
    SetScalarOutput(most_out, kMostOut);
    return out;
  }

  GraphTensor Input(const char* name, int64_t uid, const Layout& layout) {
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim(layout.size)
                             .set_stride(layout.stride)
                             .set_data_type(DataTypeOf(key_.dtype)));
  }

  GraphTensor Scalar(const char* name, int64_t uid) {
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim({1, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(fe::DataType_t::FLOAT));
  }

  static void SetScalarOutput(const GraphTensor& tensor, int64_t uid) {
    tensor->set_output(true).set_uid(uid).set_dim({1, 1, 1, 1}).set_stride({1, 1, 1, 1});
    tensor->set_data_type(fe::DataType_t::FLOAT);
  }

  const PlanKey& key_;
  fe::graph::Graph& graph_;
};

// One built graph. Executing is const in cuDNN but not in the frontend, hence the lock.
class Plan {
 public:
  Plan(const PlanKey& key, cudnnHandle_t handle) {
    GraphMaker(key, &graph_).Make();
    Check(graph_.build(handle, {fe::HeurMode_t::A}), "plan attention " + ShapeText(key));
    Check(graph_.get_workspace_size(workspace_bytes_), "size its workspace");
  }

  void Run(cudnnHandle_t handle, Tensors data, const at::Device& device) {
    const at::Tensor workspace = at::empty({std::max<int64_t>(workspace_bytes_, 1)},
                                           at::TensorOptions(at::kByte).device(device));
    const std::lock_guard lock(mutex_);
    Check(graph_.execute(handle, data, workspace.mutable_data_ptr()), "run attention");
  }

 private:
  fe::graph::Graph graph_;
  int64_t workspace_bytes_ = 0;
  std::mutex mutex_;
};

// Plans by key; the one that was asked for longest ago makes room for a new one. Two threads that
// want the same new plan may both build it; one is kept.
class PlanCache {
 public:
  std::shared_ptr<Plan> Get(const PlanKey& key, cudnnHandle_t handle) {
    if (auto plan = Find(key)) return plan;
    auto plan = std::make_shared<Plan>(key, handle);
    const std::lock_guard lock(mutex_);
    if (plans_.size() >= kMaxPlans)
      plans_.erase(Oldest());  // users hold theirs until they have run
    return plans_.emplace(key, Entry{std::move(plan), ++clock_}).first->second.plan;
  }

 private:
  struct Entry {
    std::shared_ptr<Plan> plan;
    int64_t asked;
  };
  using Plans = std::map<PlanKey, Entry>;

  std::shared_ptr<Plan> Find(const PlanKey& key) {
    const std::lock_guard lock(mutex_);
    const auto found = plans_.find(key);
    if (found == plans_.end()) return nullptr;
    found->second.asked = ++clock_;
    return found->second.plan;
  }

  Plans::iterator Oldest() {
    return std::min_element(plans_.begin(), plans_.end(), [](const auto& a, const auto& b) {
      return a.second.asked < b.second.asked;
    });
  }

  std::mutex mutex_;
  Plans plans_;
  int64_t clock_ = 0;
};

// cuDNN wants rows of D at 16-byte addresses.
at::Tensor Aligned(const at::Tensor& x) {
  const bool fits = x.stride(3) == 1 && x.stride(0) % 8 == 0 && x.stride(1) % 8 == 0 &&
                    x.stride(2) % 8 == 0 &&
                    reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

PlanKey KeyOf(const AttentionInputs& in) {
  return {in.query.device().index(),   in.query.scalar_type(),
          LayoutOf(in.query),          LayoutOf(in.key),
          LayoutOf(in.value),          in.causal,
          static_cast<float>(in.scale)};
}

Tensors TensorsOf(const AttentionInputs& in, const at::Tensor& out) {
  return {{kQuery, const_cast<void*>(in.query.const_data_ptr())},
          {kKey, const_cast<void*>(in.key.const_data_ptr())},
          {kValue, const_cast<void*>(in.value.const_data_ptr())},
          {kOut, out.mutable_data_ptr()}};
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
    Tensors data = TensorsOf(in, out);
    data[kUndoQuery] = q.undo.mutable_data_ptr();
    data[kUndoKey] = k.undo.mutable_data_ptr();
    data[kUndoValue] = v.undo.mutable_data_ptr();
    data[kUndoProbability] = undo_p.mutable_data_ptr();
    data[kScaleProbability] = scale_p.mutable_data_ptr();
    data[kScaleOut] = v.scale.mutable_data_ptr();
    data[kMostProbability] = most.mutable_data_ptr<float>();
    data[kMostOut] = most.mutable_data_ptr<float>() + 1;
    Run(KeyOf(in), std::move(data), out.device());
    return out.to(at::kFloat) * v.undo;
  }

  void Run(const PlanKey& key, Tensors data, const at::Device& device) const {
    // LibTorch's own handle of this thread, set to its current stream.
    const cudnnHandle_t handle = at::native::getCudnnHandle();
    plans_.Get(key, handle)->Run(handle, std::move(data), device);
  }

  const Admission admission_;
  mutable PlanCache plans_;
};

}  // namespace

std::unique_ptr<AttentionBackend> MakeCudnnBackend(Admission admission) {
  return std::make_unique<CudnnBackend>(admission);
}

}  // namespace denoised
