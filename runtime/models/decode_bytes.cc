// The decoder's part of model_bytes.h.
#include <algorithm>
#include <vector>

#include "runtime/models/model_bytes.h"
#include "runtime/models/vae_rows.h"

namespace denoised {
namespace {

constexpr int64_t kFloat = 4;

// ---- exact: a walk over the layers as vae_network.cc puts them together -------------------------

class ExactWalk {
 public:
  ExactWalk(const WanVaeConfig& config, int64_t f, int64_t h, int64_t w)
      : config_(config), later_(f > 1), height_(h), width_(w) {
    frames_ = WanVaeDecoder::ChunkFrames(f, h, w);
  }

  DecodeBytes Bytes(int64_t attention) {
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
    return {peak_ + tails_ + scratch_, tails_ + scratch_};
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

// ---- packed: the same as vae_packed.cc does
// ------------------------------------------------------

class PackedWalk {
 public:
  PackedWalk(const WanVaeConfig& config, const DecodeSize& size)
      : config_(config), size_(size), levels_(static_cast<int64_t>(config.dim_mult.size())) {
    const int64_t rows = size.h << (levels_ - 1);
    // One from the middle: it has neighbours on both sides.
    wanted_ = RowsOfLevels(levels_, config.num_res_blocks + 1, size.h,
                           BandOf(rows, size.bands / 2, size.bands));
  }

  DecodeBytes Bytes(int64_t attention) {
    const int64_t channels = config_.decoder_base_dim * config_.dim_mult.back();
    const int64_t chunk = WanVaeDecoder::ChunkFrames(size_.f, size_.h, size_.w);
    Level at{chunk, size_.h, size_.w, channels};
    Past(at, size_.h, config_.z_dim);
    const int64_t middle =
        std::max(ResBlock(at, channels, size_.h),
                 3 * at.Map(1, size_.h) + 7 * at.Map(chunk, size_.h) + attention);
    ResBlock(at, channels, size_.h);
    const int64_t alive = std::max(middle, Ascend(0, at));
    return {(alive + past_) * size_.element, past_ * size_.element};
  }

 private:
  struct Level {
    int64_t frames, rows, width, channels;
    int64_t Map(int64_t frames_of, int64_t rows_of) const {
      return frames_of * rows_of * width * channels;
    }
  };

  // What a causal convolution keeps of its input.
  void Past(const Level& at, int64_t rows, int64_t channels) {
    past_ += 2 * rows * at.width * channels;
  }

  // Its input, normed and not, is the caller's; a third of it where the norm is made here. The
  // first convolution's result, the shortcut, and the result, normed and not.
  int64_t ResBlock(const Level& in, int64_t out, int64_t rows) {
    const Level made{in.frames, rows, in.width, out};
    Past(in, in.rows, in.channels);
    Past(in, rows + 2, out);
    return in.Map(in.frames, in.rows) + (in.channels == out ? 3 : 4) * made.Map(in.frames, rows);
  }

  // Numbers that are alive at most while a level's input, `all` of its frames, goes all the way up.
  int64_t Ascend(int64_t level, const Level& all) {
    const int64_t held = 2 * all.Map(all.frames, all.rows);
    if (level == levels_) return held + Out(all);
    Level at = all;
    at.frames = std::min(all.frames, FramesAtOnce(all.rows * all.width));
    const int64_t out = config_.decoder_base_dim * config_.dim_mult[levels_ - 1 - level];
    const bool last = level + 1 == levels_;
    const RowRange wanted = wanted_[static_cast<size_t>(level)];
    const int64_t made = last ? wanted.size() : wanted.BeforeDoubling(size_.h << level).size();
    int64_t peak = 0;
    for (int64_t i = config_.num_res_blocks; i >= 0; --i) {
      const int64_t rows = std::min(made + i * 2 * kResBlockGrowth, at.rows);
      const int64_t before = 2 * at.Map(at.frames, at.rows);
      peak = std::max(peak, before + ResBlock(at, out, rows));
      at = {at.frames, rows, at.width, out};
    }
    if (last) return held + std::max(peak, Ascend(levels_, at));
    const Level up = Enlarged(level, at, wanted.size());
    const int64_t spread = 3 * at.Map(at.frames, at.rows) + Doubling(level, at) +
                           (config_.is_residual ? 4 : 2) * up.Map(up.frames, up.rows);
    return held + std::max({peak, spread, Ascend(level + 1, up)});
  }

  Level Enlarged(int64_t level, const Level& at, int64_t rows) const {
    const bool doubles = config_.temporal_upsample[level] && size_.f > 1;
    const int64_t out = config_.is_residual ? at.channels : at.channels / 2;
    return {at.frames * (doubles ? 2 : 1), rows, 2 * at.width, out};
  }

  // The time convolution's result.
  int64_t Doubling(int64_t level, const Level& at) {
    if (!config_.temporal_upsample[level]) return 0;
    Past(at, at.rows, at.channels);
    return 2 * at.Map(at.frames, at.rows);
  }

  // The last convolution, the finite check, the pixels in [0, 1] and their bytes.
  int64_t Out(const Level& at) {
    Past(at, at.rows, at.channels);
    return 6 * at.frames * at.rows * at.width * config_.out_channels;
  }

  const WanVaeConfig& config_;
  const DecodeSize size_;
  const int64_t levels_;
  std::vector<RowRange> wanted_;
  int64_t past_ = 0;
};

}  // namespace

DecodeBytes BytesOfDecode(const WanVaeConfig& config, const DecodeSize& size, int64_t attention) {
  const int64_t latents = size.f * size.h * size.w * config.z_dim * kFloat;
  const DecodeBytes network = size.bands > 0
                                  ? PackedWalk(config, size).Bytes(attention)
                                  : ExactWalk(config, size.f, size.h, size.w).Bytes(attention);
  return {3 * latents + network.peak, latents + network.held};
}

}  // namespace denoised
