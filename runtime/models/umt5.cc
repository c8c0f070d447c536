#include "runtime/models/umt5.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/models/row_kernels.h"

namespace denoised {
namespace {

constexpr int64_t kExactRows = 32;

double LowestOf(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
      return static_cast<float>(std::numeric_limits<c10::BFloat16>::lowest());
    case at::kHalf:
      return static_cast<float>(std::numeric_limits<c10::Half>::lowest());
    default:
      return std::numeric_limits<float>::lowest();
  }
}

// Rows that hold a real token, rounded up to `granularity`.
int64_t RowsToCompute(const at::Tensor& mask, int64_t granularity) {
  const int64_t length = mask.size(1);
  const at::Tensor last = mask.to(at::kLong) * at::arange(1, length + 1, mask.device());
  const int64_t used = std::max<int64_t>(1, last.max().item<int64_t>());
  const int64_t rounded = (used + granularity - 1) / granularity * granularity;
  return std::min(length, rounded);
}

// The bucket of each (query, key) distance: exact ones up to a quarter of the buckets per sign,
// logarithmic ones beyond. [rows, rows] int64. float32 steps as in the reference, on the host: a
// logarithm that another device rounds otherwise would move a token to the next bucket.
at::Tensor RelativeBuckets(int64_t rows, const Umt5Config& config, at::Device device) {
  const int64_t half = config.num_buckets / 2;
  const int64_t exact = half / 2;
  const at::Tensor position = at::arange(rows, at::kLong);
  const at::Tensor relative = position.unsqueeze(0) - position.unsqueeze(1);
  const at::Tensor distance = relative.abs();
  const double log_range = std::log(static_cast<double>(config.max_distance) / exact);
  const at::Tensor steps =
      (at::log(distance.to(at::kFloat) / exact) / log_range * (half - exact)).to(at::kLong);
  const at::Tensor far = (steps + exact).clamp_max(half - 1);
  const at::Tensor near = at::where(distance < exact, distance, far);
  return ((relative > 0).to(at::kLong) * half + near).to(device);
}

// The tanh form written out: F.gelu's own kernel rounds differently in the last bit.
at::Tensor GeluNew(const at::Tensor& x) {
  const double root = std::sqrt(2.0 / M_PI);
  return 0.5 * x * (1.0 + at::tanh(root * (x + 0.044715 * at::pow(x, 3.0))));
}

}  // namespace

Umt5Config Umt5Config::Read(const ConfigReader& reader) {
  Umt5Config c;
  c.vocab_size = reader.Int("vocab_size", c.vocab_size, 1, 1 << 24);
  c.d_model = reader.Int("d_model", c.d_model, 1, 1 << 16);
  c.d_kv = reader.Int("d_kv", c.d_kv, 1, 1 << 12);
  c.d_ff = reader.Int("d_ff", c.d_ff, 1, 1 << 20);
  c.num_layers = reader.Int("num_layers", c.num_layers, 1, 1024);
  c.num_heads = reader.Int("num_heads", c.num_heads, 1, 1024);
  c.num_buckets = reader.Int("relative_attention_num_buckets", c.num_buckets, 4, 1 << 16);
  c.max_distance = reader.Int("relative_attention_max_distance", c.max_distance, 2, 1 << 24);
  c.eps = reader.Double("layer_norm_epsilon", c.eps);
  reader.RequireOneOf("feed_forward_proj", {"gated-gelu"});
  reader.RequireOneOf("model_type", {"umt5"});
  if (c.num_buckets % 4 != 0 || c.max_distance <= c.num_buckets / 4) {
    throw Error(StatusCode::kInvalidArgument,
                reader.path() +
                    ": relative_attention_num_buckets: wanted a multiple of 4 below "
                    "four times relative_attention_max_distance, came " +
                    std::to_string(c.num_buckets));
  }
  return c;
}

int64_t Umt5Config::Numbers() const {
  const int64_t attention = 4 * d_model * num_heads * d_kv + num_buckets * num_heads;
  return vocab_size * d_model + d_model +
         num_layers * (attention + 3 * d_model * d_ff + 2 * d_model);
}

Umt5Encoder::Umt5Encoder(Umt5Config config, at::ScalarType dtype, at::Device device,
                         LinearNumerics linear)
    : config_(config),
      dtype_(dtype),
      device_(device),
      linear_(linear),
      own_(LoadOptions{nullptr, dtype, device, linear}) {}

std::unique_ptr<Umt5Encoder> Umt5Encoder::Load(const ModelFolder& folder, at::ScalarType dtype,
                                               at::Device device, LinearNumerics linear) {
  const Umt5Config config = Umt5Config::Read(ConfigReader::FromFile(folder, "config.json"));
  SpecDType(dtype);
  std::unique_ptr<Umt5Encoder> encoder(new Umt5Encoder(config, dtype, device, linear));
  encoder->Reload(folder);
  return encoder;
}

void Umt5Encoder::Release() {
  loaded_ = false;
  weights_ = {};
}

void Umt5Encoder::Reload(const ModelFolder& folder) {
  Weights files = Weights::Open(folder, "model");
  const LoadOptions from{&files, dtype_, device_, linear_};
  // Tied: writers keep one name or the other, some keep both.
  const std::string tied = "encoder.embed_tokens.weight";
  const std::string name = files.Contains("shared.weight") || !files.Contains(tied)
                               ? std::string("shared.weight")
                               : tied;
  AllWeights taken;
  taken.embedding = from.Take(name, {config_.vocab_size, config_.d_model});
  for (int64_t i = 0; i < config_.num_layers; ++i) taken.blocks.push_back(TakeBlock(from, i));
  taken.final_norm = from.Take("encoder.final_layer_norm.weight", {config_.d_model});
  unused_ = files.Unused();
  std::erase(unused_, tied);
  weights_ = std::move(taken);
  loaded_ = true;
}

int64_t Umt5Encoder::WeightBytes() const {
  return config_.Numbers() * static_cast<int64_t>(c10::elementSize(dtype_));
}

Umt5Encoder::Block Umt5Encoder::TakeBlock(const LoadOptions& from, int64_t index) const {
  const std::string root = "encoder.block." + std::to_string(index) + ".layer.";
  const std::string attention = root + "0.SelfAttention.";
  const std::string dense = root + "1.DenseReluDense.";
  const int64_t d = config_.d_model;
  const int64_t inner = config_.num_heads * config_.d_kv;
  // transformers keeps the last projection in float32 when it loads a model as float16.
  LoadOptions wo_from = from;
  wo_from.linear = from.kept();
  if (from.dtype == at::kHalf) wo_from.dtype = at::kFloat;
  Block block;
  block.attention_norm = from.Take(root + "0.layer_norm.weight", {d});
  block.q = Linear::Take(from, attention + "q", d, inner, false);
  block.k = Linear::Take(from, attention + "k", d, inner, false);
  block.v = Linear::Take(from, attention + "v", d, inner, false);
  block.o = Linear::Take(from, attention + "o", inner, d, false);
  block.relative_bias = from.Take(attention + "relative_attention_bias.weight",
                                  {config_.num_buckets, config_.num_heads});
  block.ff_norm = from.Take(root + "1.layer_norm.weight", {d});
  block.wi_0 = Linear::Take(from, dense + "wi_0", d, config_.d_ff, false);
  block.wi_1 = Linear::Take(from, dense + "wi_1", d, config_.d_ff, false);
  block.wo = Linear::Take(wo_from, dense + "wo", config_.d_ff, d, false);
  return block;
}

AttentionSpec Umt5Encoder::Spec(int64_t length) const {
  AttentionSpec spec;
  spec.role = AttentionRole::kTextEncoder;
  spec.num_heads = config_.num_heads;
  spec.head_size = config_.d_kv;
  spec.dtype = SpecDType(dtype_);
  spec.q_len = length;
  spec.kv_len = length;
  spec.has_mask = true;
  spec.custom_scale = true;
  spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa, AttnBackend::kReference};
  return spec;
}

// What the layers of one forward share.
struct Umt5Encoder::Scratch {
  at::Tensor buckets;  // [R, R] int64
  at::Tensor real;     // [B, 1, 1, R] bool: the key is a real token
  at::Tensor mask;     // [B, H, R, K] additive; columns from R on stay at the dtype's lowest
  at::Tensor key;      // [B, K, H, d_kv]; rows from R on stay zero
  at::Tensor value;    // like key
};

at::Tensor Umt5Encoder::Forward(const at::Tensor& ids, const at::Tensor& mask) const {
  c10::InferenceMode guard;
  if (!loaded_) {
    throw Error(StatusCode::kFailedPrecondition, "the text encoder's weights were released");
  }
  RequireDim(ids, 2, "token ids");
  RequireDim(mask, 2, "token mask");
  RequireSize(mask, 1, ids.size(1), "token mask");
  if (ids.min().item<int64_t>() < 0 || ids.max().item<int64_t>() >= config_.vocab_size) {
    throw InvalidField("token ids", "wanted 0 to " + std::to_string(config_.vocab_size - 1) +
                                        ", the text encoder's vocabulary");
  }
  const int64_t batch = ids.size(0), length = ids.size(1);
  const int64_t rows = RowsToCompute(mask, own_.InUse() ? 1 : kExactRows);
  const int64_t keys = own_.InUse() ? rows : length;
  const at::TensorOptions options = weights_.embedding.options();
  Scratch scratch;
  scratch.buckets = RelativeBuckets(rows, config_, options.device());
  const at::Tensor real = mask.to(options.device()).ne(0);
  scratch.real = real.narrow(1, 0, rows).view({batch, 1, 1, rows});
  scratch.mask = at::full({batch, config_.num_heads, rows, keys}, LowestOf(dtype_), options);
  scratch.key = at::zeros({batch, keys, config_.num_heads, config_.d_kv}, options);
  scratch.value = at::zeros_like(scratch.key);

  at::Tensor x = at::embedding(weights_.embedding, ids.to(options.device()).narrow(1, 0, rows));
  for (size_t i = 0; i < weights_.blocks.size(); ++i) {
    x = x + Attend(weights_.blocks[i], static_cast<int>(i), x, &scratch);
    x = x + FeedForward(weights_.blocks[i], x);
  }
  x = Norm(x, weights_.final_norm);
  at::Tensor out = at::zeros({batch, length, config_.d_model}, options);
  const at::Tensor kept = real.narrow(1, 0, rows).unsqueeze(-1);
  out.narrow(1, 0, rows).copy_(x.masked_fill(kept.logical_not(), 0));
  return out;
}

at::Tensor Umt5Encoder::Attend(const Block& block, int layer, const at::Tensor& x,
                               Scratch* scratch) const {
  const int64_t batch = x.size(0), rows = x.size(1);
  const std::vector<int64_t> heads = {batch, rows, config_.num_heads, config_.d_kv};
  const at::Tensor n = Norm(x, block.attention_norm);
  const at::Tensor query = block.q(n).view(heads);
  scratch->key.narrow(1, 0, rows).copy_(block.k(n).view(heads));
  scratch->value.narrow(1, 0, rows).copy_(block.v(n).view(heads));
  const at::Tensor bias =
      at::embedding(block.relative_bias, scratch->buckets).permute({2, 0, 1}).unsqueeze(0);
  scratch->mask.narrow(3, 0, rows)
      .copy_(at::where(scratch->real, bias, at::scalar_tensor(LowestOf(dtype_), bias.options())));
  const AttentionLayer attention(AttentionRole::kTextEncoder, layer, /*scale=*/1.0);
  const at::Tensor out =
      attention.Forward(query, scratch->key, scratch->value, {.mask = scratch->mask});
  return block.o(out.reshape({batch, rows, config_.num_heads * config_.d_kv}));
}

at::Tensor Umt5Encoder::FeedForward(const Block& block, const at::Tensor& x) const {
  const at::Tensor n = Norm(x, block.ff_norm);
  const at::Tensor gate =
      own_.InUse() ? block.wi_0(n, Activation::kGeluTanh) : GeluNew(block.wi_0(n));
  const at::Tensor h = gate * block.wi_1(n);
  return block.wo(h.to(block.wo.dtype()));
}

int64_t Umt5Encoder::FormBytes(LinearNumerics linear) const {
  const bool exact = linear == LinearNumerics::kExact;
  if (!own_.possible || exact == (own_.kept == LinearNumerics::kExact)) return 0;
  const int64_t inner = config_.num_heads * config_.d_kv;
  const int64_t largest = config_.d_model * std::max(config_.d_ff, inner);
  return 2 * largest * static_cast<int64_t>(c10::elementSize(dtype_));
}

at::Tensor Umt5Encoder::Norm(const at::Tensor& x, const at::Tensor& weight) const {
  if (own_.InUse()) return NormRms(x, weight, config_.eps);
  const at::Tensor variance = x.to(at::kFloat).pow(2).mean(-1, /*keepdim=*/true);
  at::Tensor n = x * at::rsqrt(variance + config_.eps);
  if (dtype_ != at::kFloat) n = n.to(dtype_);
  return weight * n;
}

}  // namespace denoised
