#include "tests/runtime/random_transformer.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <fstream>
#include <map>

#include "backends/registry.h"
#include "runtime/loaders/safetensors.h"

namespace denoised {
namespace {

class Writer {
 public:
  explicit Writer(uint64_t seed) : generator_(at::detail::createCPUGenerator(seed)) {}

  // Sums over `fan` numbers keep the size of what comes in.
  void Add(const std::string& name, const std::vector<int64_t>& shape, double fan,
           double around = 0) {
    const at::Tensor x = at::randn(shape, generator_, at::TensorOptions(at::kFloat))
                             .div_(std::sqrt(fan))
                             .add_(around);
    tensors_[name] = {"F32", shape,
                      std::string(static_cast<const char*>(x.const_data_ptr()), x.nbytes())};
  }
  void Linear(const std::string& name, int64_t in, int64_t out) {
    Add(name + ".weight", {out, in}, static_cast<double>(in));
    Add(name + ".bias", {out}, 100);
  }
  void Attention(const std::string& name, int64_t width) {
    for (const char* part : {"to_q", "to_k", "to_v", "to_out.0"}) Linear(name + part, width, width);
    for (const char* part : {"norm_q", "norm_k"}) Add(name + part + ".weight", {width}, 100, 1);
  }
  const std::map<std::string, RawTensor>& tensors() const { return tensors_; }

 private:
  at::Generator generator_;
  std::map<std::string, RawTensor> tensors_;
};

void AddBlock(Writer* w, const RandomShape& s, int64_t index) {
  const std::string name = "blocks." + std::to_string(index) + ".";
  const int64_t d = s.heads * s.head_size;
  w->Add(name + "scale_shift_table", {1, 6, d}, 4);
  w->Attention(name + "attn1.", d);
  w->Attention(name + "attn2.", d);
  if (s.gated) w->Linear(name + "to_gate_compress", d, d);
  if (s.projection) w->Linear(name + "attn1.attn_impl.proj_l", s.head_size, s.head_size);
  w->Add(name + "norm2.weight", {d}, 100, 1);
  w->Add(name + "norm2.bias", {d}, 100);
  w->Linear(name + "ffn.net.0.proj", d, s.ffn);
  w->Linear(name + "ffn.net.2", s.ffn, d);
}

std::string ConfigOf(const RandomShape& s) {
  const auto field = [](const char* key, int64_t value) {
    return std::string(",\"") + key + "\":" + std::to_string(value);
  };
  return "{\"_class_name\":\"WanTransformer3DModel\",\"patch_size\":[1,2,2]" +
         field("num_attention_heads", s.heads) + field("attention_head_dim", s.head_size) +
         field("in_channels", s.channels) + field("out_channels", s.channels) +
         field("text_dim", s.text) + field("freq_dim", 32) + field("ffn_dim", s.ffn) +
         field("num_layers", s.layers) + "}";
}

}  // namespace

std::filesystem::path WriteRandomTransformer(const std::filesystem::path& folder,
                                             const RandomShape& s, uint64_t seed) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << ConfigOf(s);
  const int64_t d = s.heads * s.head_size;
  Writer w(seed);
  w.Add("patch_embedding.weight", {d, s.channels, 1, 2, 2}, static_cast<double>(4 * s.channels));
  w.Add("patch_embedding.bias", {d}, 100);
  const std::string embedder = "condition_embedder.";
  w.Linear(embedder + "time_embedder.linear_1", 32, d);
  w.Linear(embedder + "time_embedder.linear_2", d, d);
  w.Linear(embedder + "time_proj", d, 6 * d);
  w.Linear(embedder + "text_embedder.linear_1", s.text, d);
  w.Linear(embedder + "text_embedder.linear_2", d, d);
  for (int64_t i = 0; i < s.layers; ++i) AddBlock(&w, s, i);
  w.Add("scale_shift_table", {1, 2, d}, 4);
  w.Linear("proj_out", d, 4 * s.channels);
  WriteSafetensors(folder / "diffusion_pytorch_model.safetensors", w.tensors());
  return folder;
}

AttentionPlan PlanFor(const WanTransformer& model, const std::array<int64_t, 3>& grid,
                      int64_t text_length, AttnBackend self, const std::string& parameters,
                      int64_t step) {
  AttentionPlan plan;
  const auto fill = [&](const AttentionSpec& spec, AttnBackend id, const std::string& own) {
    AttentionSlot& slot = plan[static_cast<size_t>(spec.role)].slots.emplace_back();
    slot.id = id;
    slot.backend = BackendRegistry::Default().Find(id)->backend;
    if (const auto builder = slot.backend->MakeBuilder()) {
      slot.metadata = builder->Build({step, 10, spec, own});
    }
  };
  fill(model.SelfSpec(grid), self, parameters);
  fill(model.CrossSpec(grid, text_length), AttnBackend::kFlashAttn, "");
  return plan;
}

}  // namespace denoised
