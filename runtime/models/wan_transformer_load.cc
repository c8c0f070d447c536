// WanTransformer: what comes from its folder.
#include <cmath>
#include <limits>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/models/wan_transformer.h"

namespace denoised {
namespace {

constexpr int64_t kMaxSize = 1 << 20;

Error BadValue(const ConfigReader& reader, const std::string& key, const std::string& wanted) {
  return Error(StatusCode::kInvalidArgument, reader.path() + ": " + key + ": wanted " + wanted +
                                                 ", came " + reader.json().at(key).dump());
}

// Keys whose value would change the model in a way that is not built here.
void RefuseImageContext(const ConfigReader& reader) {
  for (const char* key : {"image_dim", "added_kv_proj_dim", "pos_embed_seq_len"}) {
    if (reader.Has(key)) {
      throw BadValue(reader, key, "null (image-conditioned checkpoints are not supported)");
    }
  }
}

void ReadPatchSize(const ConfigReader& reader, WanTransformerConfig* c) {
  const std::vector<int64_t> patch = reader.Ints("patch_size", {1, 2, 2});
  bool fits = patch.size() == 3;
  for (int64_t side : patch) fits = fits && side >= 1 && side <= 64;
  if (!fits) throw BadValue(reader, "patch_size", "three sizes from 1 to 64");
  c->patch_size = {patch[0], patch[1], patch[2]};
}

}  // namespace

WanTransformerConfig WanTransformerConfig::Read(const ConfigReader& reader) {
  WanTransformerConfig c;
  reader.RequireOneOf("_class_name", {"WanTransformer3DModel"});
  RefuseImageContext(reader);
  ReadPatchSize(reader, &c);
  c.num_heads = reader.Int("num_attention_heads", c.num_heads, 1, 1024);
  c.head_dim = reader.Int("attention_head_dim", c.head_dim, 2, 4096);
  if (c.head_dim % 2 != 0) throw BadValue(reader, "attention_head_dim", "an even number");
  c.in_channels = reader.Int("in_channels", c.in_channels, 1, 4096);
  // Written as null it means "as many as come in"; absent it means diffusers' default.
  const bool as_input = reader.json().contains("out_channels") && !reader.Has("out_channels");
  c.out_channels = reader.Int("out_channels", as_input ? c.in_channels : c.out_channels, 1, 4096);
  c.text_dim = reader.Int("text_dim", c.text_dim, 1, kMaxSize);
  c.freq_dim = reader.Int("freq_dim", c.freq_dim, 2, kMaxSize);
  if (c.freq_dim % 2 != 0) throw BadValue(reader, "freq_dim", "an even number");
  c.ffn_dim = reader.Int("ffn_dim", c.ffn_dim, 1, kMaxSize);
  c.num_layers = reader.Int("num_layers", c.num_layers, 1, 1024);
  c.cross_attn_norm = reader.Bool("cross_attn_norm", c.cross_attn_norm);
  c.eps = reader.Double("eps", c.eps);
  c.rope_max_seq_len = reader.Int("rope_max_seq_len", c.rope_max_seq_len, 1, kMaxSize);
  reader.RequireOneOf("qk_norm", {"rms_norm_across_heads"});
  return c;
}

WanTransformer::WanTransformer(WanTransformerConfig config, at::ScalarType dtype, at::Device device)
    : config_(config),
      dtype_(dtype),
      device_(device),
      rope_(config.head_dim, config.rope_max_seq_len, device) {
  // Every step in float32, as the reference does: the sine of a large angle feels the last bit.
  const int64_t half = config_.freq_dim / 2;
  const at::Tensor exponent = -std::log(10000.0) * at::arange(half, at::kFloat) / half;
  time_frequencies_ = at::exp(exponent).unsqueeze(0).to(device);
  own_time_frequencies_ = TimeFrequencies(half);
}

std::unique_ptr<WanTransformer> WanTransformer::Load(const ModelFolder& folder,
                                                     at::ScalarType dtype, at::Device device,
                                                     LinearNumerics linear) {
  const auto config = WanTransformerConfig::Read(ConfigReader::FromFile(folder, "config.json"));
  SpecDType(dtype);
  Weights weights = Weights::Open(folder, "diffusion_pytorch_model");
  std::unique_ptr<WanTransformer> model(new WanTransformer(config, dtype, device));
  LoadOptions from{&weights, dtype, device, linear};
  from.made_bytes = &model->made_bytes_;
  model->TakeTensors(from);
  for (const std::string& name : weights.Unused()) {
    // diffusers ignores these too.
    if (name.find("norm_added_q") == std::string::npos) model->unused_.push_back(name);
  }
  return model;
}

void WanTransformer::TakeTensors(const LoadOptions& from) {
  own_ = OwnKernels(from);
  const int64_t d = config_.width();
  const std::string embedder = "condition_embedder.";
  const auto& patch = config_.patch_size;
  patch_weight_ =
      from.Take("patch_embedding.weight", {d, config_.in_channels, patch[0], patch[1], patch[2]});
  patch_bias_ = from.Take("patch_embedding.bias", {d});
  if (own_.possible) {
    patch_linear_ = Linear(patch_weight_.flatten(1), patch_bias_, LinearNumerics::kPacked);
  }
  time_linear_1_ =
      Linear::TakeFloat(from, embedder + "time_embedder.linear_1", config_.freq_dim, d);
  time_linear_2_ = Linear::TakeFloat(from, embedder + "time_embedder.linear_2", d, d);
  time_projection_ = Linear::Take(from, embedder + "time_proj", d, 6 * d);
  text_linear_1_ = Linear::Take(from, embedder + "text_embedder.linear_1", config_.text_dim, d);
  text_linear_2_ = Linear::Take(from, embedder + "text_embedder.linear_2", d, d);
  has_gate_ = from.weights->Contains("blocks.0.to_gate_compress.weight");
  has_projection_ = from.weights->Contains("blocks.0.attn1.attn_impl.proj_l.weight");
  for (int64_t i = 0; i < config_.num_layers; ++i) blocks_.push_back(TakeBlock(from, i));
  out_modulation_ = from.TakeFloat("scale_shift_table", {1, 2, d});
  proj_out_ = Linear::Take(from, "proj_out", d, config_.out_channels * config_.patch_volume());
}

WanTransformer::Block WanTransformer::TakeBlock(const LoadOptions& from, int64_t index) const {
  const std::string name = "blocks." + std::to_string(index) + ".";
  const int64_t d = config_.width();
  Block block;
  block.modulation = from.TakeFloat(name + "scale_shift_table", {1, 6, d});
  block.self = TakeAttention(from, name + "attn1.");
  block.cross = TakeAttention(from, name + "attn2.");
  if (has_gate_) block.to_gate = Linear::Take(from, name + "to_gate_compress", d, d);
  if (has_projection_) {
    const int64_t size = config_.head_dim;
    block.sla_weight = from.TakeFloat(name + "attn1.attn_impl.proj_l.weight", {size, size});
    block.sla_bias = from.TakeFloat(name + "attn1.attn_impl.proj_l.bias", {size});
  }
  if (config_.cross_attn_norm) {
    block.norm2_weight = from.TakeFloat(name + "norm2.weight", {d});
    block.norm2_bias = from.TakeFloat(name + "norm2.bias", {d});
  }
  block.ffn_in = Linear::TakeTolerant(from, name + "ffn.net.0.proj", d, config_.ffn_dim);
  block.ffn_out = Linear::TakeTolerant(from, name + "ffn.net.2", config_.ffn_dim, d);
  return block;
}

WanTransformer::Attention WanTransformer::TakeAttention(const LoadOptions& from,
                                                        const std::string& name) const {
  const int64_t d = config_.width();
  Attention attention;
  attention.to_q = Linear::TakeTolerant(from, name + "to_q", d, d);
  attention.to_k = Linear::TakeTolerant(from, name + "to_k", d, d);
  attention.to_v = Linear::TakeTolerant(from, name + "to_v", d, d);
  attention.to_out = Linear::TakeTolerant(from, name + "to_out.0", d, d);
  attention.norm_q = from.Take(name + "norm_q.weight", {d});
  attention.norm_k = from.Take(name + "norm_k.weight", {d});
  return attention;
}

}  // namespace denoised
