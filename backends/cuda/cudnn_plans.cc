#include "backends/cuda/cudnn_plans.h"

#include <algorithm>
#include <string>
#include <utility>

#include "backends/error.h"

namespace denoised::cudnn {
namespace {

namespace fe = cudnn_frontend;

constexpr size_t kMaxPlans = 256;  // a plan holds compiled kernels: some MB

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

}  // namespace

Plan::Plan(const PlanKey& key, cudnnHandle_t handle) {
  GraphMaker(key, &graph_).Make();
  Check(graph_.build(handle, {fe::HeurMode_t::A}), "plan attention " + ShapeText(key));
  Check(graph_.get_workspace_size(workspace_bytes_), "size its workspace");
}

void Plan::Run(cudnnHandle_t handle, Tensors data, const at::Device& device) {
  const at::Tensor workspace = at::empty({std::max<int64_t>(workspace_bytes_, 1)},
                                         at::TensorOptions(at::kByte).device(device));
  const std::lock_guard lock(mutex_);
  Check(graph_.execute(handle, data, workspace.mutable_data_ptr()), "run attention");
}

std::shared_ptr<Plan> PlanCache::Get(const PlanKey& key, cudnnHandle_t handle) {
  if (auto plan = Find(key)) return plan;
  auto plan = std::make_shared<Plan>(key, handle);
  const std::lock_guard lock(mutex_);
  if (plans_.size() >= kMaxPlans) {
    plans_.erase(Oldest());  // users hold theirs until they have run
  }
  return plans_.emplace(key, Entry{std::move(plan), ++clock_}).first->second.plan;
}

std::shared_ptr<Plan> PlanCache::Find(const PlanKey& key) {
  const std::lock_guard lock(mutex_);
  const auto found = plans_.find(key);
  if (found == plans_.end()) return nullptr;
  found->second.asked = ++clock_;
  return found->second.plan;
}

PlanCache::Plans::iterator PlanCache::Oldest() {
  return std::min_element(plans_.begin(), plans_.end(), [](const auto& a, const auto& b) {
    return a.second.asked < b.second.asked;
  });
}

}  // namespace denoised::cudnn
