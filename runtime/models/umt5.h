// The UMT5 text encoder (transformers' UMT5EncoderModel), as Wan pipelines use it.
//
// Differs from T5 in one thing: every block has its own relative position bias. No attention scale,
// no biases in projections. Paper: Chung et al., "UniMax", arXiv:2304.09151; Raffel et al.,
// arXiv:1910.10683.
#ifndef DENOISED_RUNTIME_MODELS_UMT5_H_
#define DENOISED_RUNTIME_MODELS_UMT5_H_

#include <ATen/ATen.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "runtime/attention/attention_layer.h"
#include "runtime/models/layers.h"

namespace denoised {

class ConfigReader;

struct Umt5Config {
  int64_t vocab_size = 250112;
  int64_t d_model = 512;
  int64_t d_kv = 64;
  int64_t d_ff = 1024;
  int64_t num_layers = 8;
  int64_t num_heads = 6;
  int64_t num_buckets = 32;
  int64_t max_distance = 128;
  double eps = 1e-6;

  // INVALID_ARGUMENT naming file, key and value for anything that this encoder does not do.
  static Umt5Config Read(const ConfigReader& reader);
  // Of all its tensors.
  int64_t Numbers() const;
};

// Used by the engine thread, Forward inside a ScopedForwardContext whose plan has a backend for
// AttentionRole::kTextEncoder. Immutable after Load but for its weights, which can be away between
// two prompts: they are most of what a text-to-video model holds, and needed for a moment.
class Umt5Encoder {
 public:
  // Reads config.json and the model.safetensors (or shards) of `folder`.
  static std::unique_ptr<Umt5Encoder> Load(const ModelFolder& folder, at::ScalarType dtype,
                                           at::Device device,
                                           LinearNumerics linear = LinearNumerics::kPacked);

  // ids [B, L] int64, mask [B, L] (nonzero = a real token; real tokens come first in a row).
  // Returns [B, L, d_model] in the model's dtype; rows of padding are zeros.
  // INVALID_ARGUMENT for an id outside of the vocabulary.
  //
  // Rows after the last real token of the batch are not computed. Packed numerics leave out their
  // keys as well, and a prompt has its bits in any company. Exact ones round the rows up to 32 and
  // keep the keys of padding, which weigh exactly zero: the kept rows have the bits of the
  // full-length computation wherever LibTorch's products give a row the same bits in any company.
  at::Tensor Forward(const at::Tensor& ids, const at::Tensor& mask) const;

  // Frees the weights: Forward throws FAILED_PRECONDITION until Reload has read them again.
  // `folder` is one of the same files (the caller compares digests); where that fails they stay
  // away.
  void Release();
  void Reload(const ModelFolder& folder);
  bool loaded() const { return loaded_; }  // any thread
  // Of the weights while they are here; any thread, as everything below.
  int64_t WeightBytes() const;

  // What the encoder's attention needs, for Select().
  AttentionSpec Spec(int64_t length) const;

  // Of weights in a form that is not kept, which calls with `linear` numerics make for themselves.
  int64_t FormBytes(LinearNumerics linear) const;

  const Umt5Config& config() const { return config_; }
  at::ScalarType dtype() const { return dtype_; }
  const std::vector<std::string>& unused_tensors() const { return unused_; }

 private:
  struct Block {
    at::Tensor attention_norm;  // [d_model]
    Linear q, k, v, o;          // d_model <-> num_heads * d_kv
    at::Tensor relative_bias;   // [num_buckets, num_heads]
    at::Tensor ff_norm;         // [d_model]
    Linear wi_0, wi_1, wo;      // gated feed-forward
  };
  struct Scratch;
  struct AllWeights {
    at::Tensor embedding;  // [vocab_size, d_model]
    std::vector<Block> blocks;
    at::Tensor final_norm;  // [d_model]
  };

  Umt5Encoder(Umt5Config config, at::ScalarType dtype, at::Device device, LinearNumerics linear);
  Block TakeBlock(const LoadOptions& from, int64_t index) const;
  at::Tensor Attend(const Block& block, int layer, const at::Tensor& x, Scratch* scratch) const;
  at::Tensor FeedForward(const Block& block, const at::Tensor& x) const;
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const;

  const Umt5Config config_;
  const at::ScalarType dtype_;
  const at::Device device_;
  const LinearNumerics linear_;
  const OwnKernels own_;
  AllWeights weights_;
  std::atomic<bool> loaded_{false};
  std::vector<std::string> unused_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_UMT5_H_
