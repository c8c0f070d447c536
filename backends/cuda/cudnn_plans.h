// Attention as graphs of cuDNN 9, built with cudnn-frontend: what shapes a graph, the plan that is
// made of one, and the plans that are kept. For cudnn_attn.cc; in builds with CUDA only.
//
// Thread-safe. Where cuDNN refuses, INTERNAL with what it says.
#ifndef DENOISED_BACKENDS_CUDA_CUDNN_PLANS_H_
#define DENOISED_BACKENDS_CUDA_CUDNN_PLANS_H_

#include <ATen/ATen.h>
#include <cudnn_frontend.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace denoised::cudnn {

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

// One built graph. Executing is const in cuDNN but not in the frontend, hence the lock.
class Plan {
 public:
  Plan(const PlanKey& key, cudnnHandle_t handle);

  // On the handle's stream, which is one of `device`. `data` has an address for each tensor of the
  // graph.
  void Run(cudnnHandle_t handle, Tensors data, const at::Device& device);

 private:
  cudnn_frontend::graph::Graph graph_;
  int64_t workspace_bytes_ = 0;
  std::mutex mutex_;
};

// Plans by key; the one that was asked for longest ago makes room for a new one. Two threads that
// want the same new plan may both build it; one is kept.
class PlanCache {
 public:
  std::shared_ptr<Plan> Get(const PlanKey& key, cudnnHandle_t handle);

 private:
  struct Entry {
    std::shared_ptr<Plan> plan;
    int64_t asked;
  };
  using Plans = std::map<PlanKey, Entry>;

  std::shared_ptr<Plan> Find(const PlanKey& key);
  Plans::iterator Oldest();

  std::mutex mutex_;
  Plans plans_;
  int64_t clock_ = 0;
};

}  // namespace denoised::cudnn

#endif  // DENOISED_BACKENDS_CUDA_CUDNN_PLANS_H_
