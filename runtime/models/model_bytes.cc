#include "runtime/models/model_bytes.h"

#include <algorithm>

namespace denoised {
namespace {

constexpr int64_t kFloat = 4;

// ---- the decoder: a walk over its layers, as vae_network.cc puts them together ------------------

class DecodeWalk {
 public:
  DecodeWalk(const WanVaeConfig& config, int64_t f, int64_t h, int64_t w)
      : config_(config), later_(f > 1), height_(h), width_(w) {
    frames_ = WanVaeDecoder::ChunkFrames(f, h, w);
  }

  int64_t Bytes(int64_t attention) {
    const int64_t levels = static_cast<int64_t>(config_.dim_mult.size());
    int64_t channels = config_.decoder_base_dim * config_.dim_mult.back();
    Convolve(config_.z_dim, channels, 0);
    ResBlock(channels, channels, 0);
    Peak(7 * Map(channels) + attention);  // x, norm, q, k, v, result, projection
    ResBlock(channels, channels, 2 * Map(channels));
    for (int64_t level = 0; level < levels; ++level) channels = UpBlock(level, channels);
    Convolve(channels, config_.out_channels, Map(channels));
    // The finite check, the pixels in [0, 1] and their bytes, beside the network's own frames.
    Peak(Map(config_.out_channels) * 5);
    return peak_ + tails_ + scratch_;
  }

 private:
  int64_t Positions() const { return height_ * width_; }
  int64_t Map(int64_t channels) const { return frames_ * Positions() * channels * kFloat; }
  void Peak(int64_t live) { peak_ = std::max(peak_, live); }

  // A causal convolution: its padded input is in the scratch, its past in a tail of two frames, of
  // which the old one lives until the new one is there.
  void Convolve(int64_t in, int64_t out, int64_t live) {
    const int64_t tail = 2 * Positions() * in * kFloat;
    tails_ += tail;
    scratch_ = std::max(scratch_, (frames_ + 2) * Positions() * in * kFloat);
    Peak(live + Map(out) + tail);
  }

  void ResBlock(int64_t in, int64_t out, int64_t live) {
    Convolve(in, out, live + Map(in));
    Convolve(out, out, live + Map(in) + Map(out) * (in == out ? 1 : 2));
  }

  // Gives the channels that leave the block.
  int64_t UpBlock(int64_t level, int64_t in) {
    const int64_t levels = static_cast<int64_t>(config_.dim_mult.size());
    const int64_t out = config_.decoder_base_dim * config_.dim_mult[levels - 1 - level];
    const int64_t input = Map(in);  // the caller holds it
    for (int64_t i = 0; i <= config_.num_res_blocks; ++i) {
      ResBlock(i == 0 ? in : out, out, i == 0 ? 0 : input);
    }
    if (level + 1 == levels) return out;
    return Upsample(level, out, input + Map(out));
  }

  int64_t Upsample(int64_t level, int64_t in, int64_t live) {
    const bool temporal = config_.temporal_upsample[level];
    if (temporal) Convolve(in, 2 * in, live);
    const int64_t copies = temporal && later_ ? 2 : 1;
    const int64_t spread = temporal ? Map(2 * in) : 0;
    height_ *= 2;
    width_ *= 2;
    frames_ *= copies;
    const int64_t out = config_.is_residual ? in : in / 2;
    const int64_t shortcut = config_.is_residual ? 2 * Map(out) : 0;
    Peak(live + spread + Map(in) + Map(out) + shortcut);
    return out;
  }

  const WanVaeConfig& config_;
  const bool later_;  // there is a chunk after the first frame's
  int64_t frames_ = 1, height_, width_;
  int64_t peak_ = 0, tails_ = 0, scratch_ = 0;
};

}  // namespace

int64_t ForwardBytes(const WanTransformerConfig& config, const ForwardSize& size,
                     int64_t attention) {
  const int64_t tokens = size.rows * size.tokens, width = config.width();
  const int64_t narrow = tokens * width * size.element;
  const bool wide_apart = size.element != kFloat;
  const int64_t hidden = narrow + (wide_apart ? tokens * width * kFloat : 0);
  const int64_t norm = 3 * tokens * width * kFloat;  // what a norm widens, squares and scales
  // A block's widest points. Attention: norm, q, k, v and gate, q and k rotated, the result.
  const int64_t attend = hidden + (size.gated ? 8 : 7) * narrow + attention;
  // The norm of k beside q and the input.
  const int64_t normed = hidden + 3 * narrow + norm;
  // The feed-forward's end: four hidden states, three norms, the wide layer and what it gives.
  const int64_t wide = tokens * config.ffn_dim * size.element;
  const int64_t feed = 4 * hidden + 4 * narrow + wide;
  const int64_t tables = size.tokens * config.head_dim * kFloat;
  const int64_t latents =
      tokens * config.patch_volume() * (config.in_channels + 3 * config.out_channels) * kFloat;
  return std::max({attend, normed, feed}) + tables + latents;
}

double ForwardMultiplyAdds(const WanTransformerConfig& config, const ForwardSize& size) {
  const double width = static_cast<double>(config.width());
  const double ffn = static_cast<double>(config.ffn_dim);
  const double token = static_cast<double>(config.num_layers) * width * (6 * width + 2 * ffn);
  return static_cast<double>(size.rows * size.tokens) * token;
}

int64_t TextContextBytes(const WanTransformerConfig& config, int64_t rows, int64_t length,
                         int64_t element) {
  return rows * length * config.width() * element * (2 * config.num_layers + 4);
}

int64_t TextEncoderBytes(const Umt5Config& config, int64_t length, int64_t element,
                         int64_t attention) {
  const int64_t inner = config.num_heads * config.d_kv;
  const int64_t numbers = length * (6 * config.d_model + 6 * inner + 4 * config.d_ff) * kFloat;
  const int64_t scores = config.num_heads * length * length;  // mask, bias and their sum
  return numbers + scores * (3 * element + 8) + length * length * 16 + attention;
}

int64_t DecodeBytes(const WanVaeConfig& config, int64_t f, int64_t h, int64_t w,
                    int64_t attention) {
  const int64_t latents = 3 * f * h * w * config.z_dim * kFloat;
  return latents + DecodeWalk(config, f, h, w).Bytes(attention);
}

}  // namespace denoised
