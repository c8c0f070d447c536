#include "runtime/models/model_bytes.h"

#include <algorithm>

namespace denoised {
namespace {

constexpr int64_t kFloat = 4;

}  // namespace

int64_t ForwardBytes(const WanTransformerConfig& config, const ForwardSize& size,
                     int64_t attention) {
  const int64_t tokens = size.rows * size.tokens, width = config.width();
  const int64_t narrow = tokens * width * size.element;
  const bool wide_apart = size.element != kFloat;
  const int64_t hidden = narrow + (wide_apart ? tokens * width * kFloat : 0);
  const int64_t norm = 3 * tokens * width * kFloat;  // what a norm widens, squares and scales
  // A block's widest points, with exact numerics; packed ones hold less, for they rotate in place
  // and make a norm's rows where they are multiplied. Attention: norm, q, k, v and gate, q and k
  // rotated, the result.
  const int64_t attend = hidden + (size.gated ? 8 : 7) * narrow + attention;
  // The norm of k beside q and the input.
  const int64_t normed = hidden + 3 * narrow + norm;
  // The feed-forward's end: four hidden states, three norms, what attention gave, the wide layer
  // and what it gives.
  const int64_t wide = tokens * config.ffn_dim * size.element;
  const int64_t feed = 4 * hidden + 5 * narrow + wide;
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

double TextEncoderMultiplyAdds(const Umt5Config& config, int64_t tokens) {
  const double model = static_cast<double>(config.d_model);
  const double inner = static_cast<double>(config.num_heads * config.d_kv);
  const double block = model * (4 * inner + 3 * static_cast<double>(config.d_ff));
  return static_cast<double>(tokens * config.num_layers) * block;
}

double DecodeMultiplyAdds(const WanVaeConfig& config, int64_t positions) {
  const std::vector<int64_t> widths = config.Widths();
  double here = static_cast<double>(positions), sum = 0;
  for (size_t stage = 1; stage < widths.size(); ++stage) {
    const double width = static_cast<double>(widths[stage]);
    const double convolutions = 2 * static_cast<double>(config.num_res_blocks + 1);
    sum += here * 27 * width * width * convolutions;
    if (stage - 1 < config.temporal_upsample.size()) {
      here *= config.temporal_upsample[stage - 1] ? 8 : 4;
    }
  }
  return sum;
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

}  // namespace denoised
