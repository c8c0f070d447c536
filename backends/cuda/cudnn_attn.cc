#include "backends/cuda/cudnn_attn.h"

#include <ATen/cudnn/Handle.h>
#include <c10/cuda/CUDAGuard.h>
#include <cudnn_frontend.h>

#include <map>
#include <mutex>
#include <tuple>

#include "backends/attention_call.h"
#include "backends/error.h"

namespace denoised {
namespace {

namespace fe = cudnn_frontend;

constexpr size_t kMaxPlans = 256;  // a plan holds compiled kernels: some MB
constexpr int64_t kQuery = 1, kKey = 2, kValue = 3, kOut = 4;  // names of tensors in a graph

// cuDNN counts [B, H, S, D], whatever the memory order; so do sizes and strides here.
struct Layout {
  std::vector<int64_t> size, stride;
  auto operator<=>(const Layout&) const = default;
};

// Everything that shapes a plan.
struct PlanKey {
  int device;
  at::ScalarType dtype;
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

// One built graph. Executing is const in cuDNN but not in the frontend, hence the lock.
class Plan {
 public:
  Plan(const PlanKey& key, cudnnHandle_t handle) {
    graph_.set_io_data_type(key.dtype == at::kBFloat16 ? fe::DataType_t::BFLOAT16
                                                       : fe::DataType_t::HALF);
    graph_.set_intermediate_data_type(fe::DataType_t::FLOAT);
    graph_.set_compute_data_type(fe::DataType_t::FLOAT);
    auto options = fe::graph::SDPA_attributes();
    options.set_name("attention").set_generate_stats(false).set_attn_scale(key.scale);
    if (key.causal) {
      options.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT);  // as LibTorch counts
      options.set_diagonal_band_right_bound(0);
    }
    auto [out, statistics] = graph_.sdpa(Input("q", kQuery, key.query), Input("k", kKey, key.key),
                                         Input("v", kValue, key.value), options);
    const Layout layout = OutLayout(key);
    out->set_output(true).set_uid(kOut).set_dim(layout.size).set_stride(layout.stride);
    Check(graph_.build(handle, {fe::HeurMode_t::A}), "plan attention " + ShapeText(key));
    Check(graph_.get_workspace_size(workspace_bytes_), "size its workspace");
  }

  void Run(cudnnHandle_t handle, const AttentionInputs& inputs, const at::Tensor& out) {
    const at::Tensor workspace = at::empty({std::max<int64_t>(workspace_bytes_, 1)},
                                           inputs.query.options().dtype(at::kByte));
    std::unordered_map<int64_t, void*> data = {
        {kQuery, const_cast<void*>(inputs.query.const_data_ptr())},
        {kKey, const_cast<void*>(inputs.key.const_data_ptr())},
        {kValue, const_cast<void*>(inputs.value.const_data_ptr())},
        {kOut, out.mutable_data_ptr()}};
    const std::lock_guard lock(mutex_);
    Check(graph_.execute(handle, data, workspace.mutable_data_ptr()), "run attention");
  }

 private:
  std::shared_ptr<fe::graph::Tensor_attributes> Input(const char* name, int64_t uid,
                                                      const Layout& layout) {
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim(layout.size)
                             .set_stride(layout.stride));
  }

  fe::graph::Graph graph_;
  int64_t workspace_bytes_ = 0;
  std::mutex mutex_;
};

// Plans by key. Two threads that want the same new plan may both build it; one is kept.
class PlanCache {
 public:
  std::shared_ptr<Plan> Get(const PlanKey& key, cudnnHandle_t handle) {
    if (auto plan = Find(key)) return plan;
    auto plan = std::make_shared<Plan>(key, handle);
    const std::lock_guard lock(mutex_);
    if (plans_.size() >= kMaxPlans) plans_.clear();  // users hold theirs until they have run
    return plans_.emplace(key, std::move(plan)).first->second;
  }

 private:
  std::shared_ptr<Plan> Find(const PlanKey& key) {
    const std::lock_guard lock(mutex_);
    const auto found = plans_.find(key);
    return found == plans_.end() ? nullptr : found->second;
  }

  std::mutex mutex_;
  std::map<PlanKey, std::shared_ptr<Plan>> plans_;
};

// cuDNN wants rows of D at 16-byte addresses.
at::Tensor Aligned(const at::Tensor& x) {
  const bool fits = x.stride(3) == 1 && x.stride(0) % 8 == 0 && x.stride(1) % 8 == 0 &&
                    x.stride(2) % 8 == 0 &&
                    reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

class CudnnBackend final : public AttentionBackend {
 public:
  explicit CudnnBackend(Admission admission) : admission_(admission) {}

  AttnBackend id() const override { return AttnBackend::kCudnnAttn; }
  std::string_view summary() const override { return "cuDNN's flash attention, by its graph API"; }

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
    return RefuseUnmeasured(admission_, "its call of cuDNN");
  }

  at::Tensor Forward(const AttentionInputs& inputs, const AttentionMetadata*) const override {
    CheckInputs(inputs);
    const c10::cuda::CUDAGuard guard(inputs.query.device());
    AttentionInputs in = inputs;
    for (at::Tensor* x : {&in.query, &in.key, &in.value}) *x = Aligned(*x);
    const at::Tensor out =
        at::empty(in.query.sizes(), in.query.options(), at::MemoryFormat::Contiguous);
    const PlanKey key{in.query.device().index(),
                      in.query.scalar_type(),
                      LayoutOf(in.query),
                      LayoutOf(in.key),
                      LayoutOf(in.value),
                      in.causal,
                      static_cast<float>(SoftmaxScale(in))};
    // LibTorch's own handle of this thread, set to its current stream.
    const cudnnHandle_t handle = at::native::getCudnnHandle();
    plans_.Get(key, handle)->Run(handle, in, out);
    return out;
  }

 private:
  const Admission admission_;
  mutable PlanCache plans_;
};

}  // namespace

std::unique_ptr<AttentionBackend> MakeCudnnBackend(Admission admission) {
  return std::make_unique<CudnnBackend>(admission);
}

}  // namespace denoised
