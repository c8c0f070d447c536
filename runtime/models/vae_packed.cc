#include "runtime/models/vae_packed.h"

#include <algorithm>

namespace denoised {
namespace {

Volume Frames(const Volume& x, size_t first, size_t count) {
  if (x.frames.empty()) return x;
  const auto begin = x.frames.begin() + static_cast<std::ptrdiff_t>(first);
  return {{begin, begin + static_cast<std::ptrdiff_t>(count)}, x.rows, x.height};
}

Volume Normed(const Volume& x, const at::Tensor& gamma) {
  Volume normed = x;
  for (at::Tensor& frame : normed.frames) {
    const at::Tensor out = at::empty(frame.sizes(), frame.options());
    RmsNormInto(frame, gamma, /*silu=*/true, out);
    frame = out;
  }
  return normed;
}

// Frames of twice the channels are two frames each.
Volume Doubled(const Volume& x) {
  Volume doubled{{}, x.rows, x.height};
  for (const at::Tensor& frame : x.frames) {
    const int64_t channels = frame.size(2) / 2;
    doubled.frames.push_back(frame.narrow(2, 0, channels));
    doubled.frames.push_back(frame.narrow(2, channels, channels));
  }
  return doubled;
}

// DuplicateUp of those rows of a block's input that make `rows` of twice the height.
Volume Spread(const Volume& x, RowRange rows, int64_t out_channels, bool temporal,
              bool first_chunk) {
  const RowRange half = {rows.first / 2, (rows.last + 1) / 2};
  Volume spread{{}, {2 * half.first, 2 * half.last}, 2 * x.height};
  for (const at::Tensor& frame : x.frames) {
    const at::Tensor part = frame.narrow(0, half.first - x.rows.first, half.size());
    for (const at::Tensor& up :
         DuplicateUp(part.unsqueeze(0), out_channels, temporal, first_chunk).unbind(0)) {
      spread.frames.push_back(up);
    }
  }
  return spread;
}

}  // namespace

PackedResBlock PackedResBlock::Take(const LoadOptions& from, const std::string& name, int64_t in,
                                    int64_t out, size_t* slots) {
  PackedResBlock block;
  block.gamma1_ = TakeGamma(from, name + "norm1", in, 3);
  block.conv1_ = VaeCausal::Take(from, name + "conv1", in, out, {3, 3, 3}, slots);
  block.gamma2_ = TakeGamma(from, name + "norm2", out, 3);
  block.conv2_ = VaeCausal::Take(from, name + "conv2", out, out, {3, 3, 3}, slots);
  if (in != out) {
    block.shortcut_.emplace(from.Take(name + "conv_shortcut.weight", {out, in, 1, 1, 1}),
                            from.Take(name + "conv_shortcut.bias", {out}));
  }
  return block;
}

Layered PackedResBlock::Run(const Layered& x, RowRange rows, const Layering& layering,
                            VaePast* past) const {
  const Volume normed = x.normed.frames.empty() ? Normed(x.plain, gamma1_) : x.normed;
  const RowRange around = rows.Grown(1, x.plain.height);
  const Volume h = conv1_.Run(normed, around, {false, gamma2_}, past).normed;
  if (!shortcut_) return conv2_.Run(h, rows, layering, past, &x.plain);
  const Volume short_way = shortcut_->Run(x.plain, rows, {}, nullptr).plain;
  return conv2_.Run(h, rows, layering, past, &short_way);
}

PackedVaeNetwork::PackedVaeNetwork(const WanVaeConfig& config, const LoadOptions& from)
    : patch_size_(config.patch_size) {
  const int64_t z = config.z_dim;
  post_quant_ = {from.Take("post_quant_conv.weight", {z, z, 1, 1, 1}).flatten(1),
                 from.Take("post_quant_conv.bias", {z}), LinearNumerics::kPacked};
  const std::vector<int64_t> widths = config.Widths();
  conv_in_ = VaeCausal::Take(from, "decoder.conv_in", z, widths[0], {3, 3, 3}, &slots_);
  const std::string mid = "decoder.mid_block.";
  mid_first_ = PackedResBlock::Take(from, mid + "resnets.0.", widths[0], widths[0], &slots_);
  mid_attention_ = VaeAttention::Take(from, mid + "attentions.0.", widths[0]);
  mid_last_ = PackedResBlock::Take(from, mid + "resnets.1.", widths[0], widths[0], &slots_);
  for (size_t i = 0; i + 1 < widths.size(); ++i) {
    up_blocks_.push_back(TakeUpBlock(config, from, i, config.UpBlockInput(i), widths[i + 1]));
  }
  gamma_out_ = TakeGamma(from, "decoder.norm_out", widths.back(), 3);
  conv_out_ = VaeCausal::Take(from, "decoder.conv_out", widths.back(), config.out_channels,
                              {3, 3, 3}, &slots_);
}

PackedVaeNetwork::UpBlock PackedVaeNetwork::TakeUpBlock(const WanVaeConfig& config,
                                                        const LoadOptions& from, size_t index,
                                                        int64_t in, int64_t out) {
  const std::string name = "decoder.up_blocks." + std::to_string(index) + ".";
  UpBlock block;
  for (int64_t i = 0; i <= config.num_res_blocks; ++i) {
    const std::string resnet = name + "resnets." + std::to_string(i) + ".";
    block.resnets.push_back(PackedResBlock::Take(from, resnet, i == 0 ? in : out, out, &slots_));
  }
  if (index + 1 == config.dim_mult.size()) return block;
  block.shortcut = config.is_residual;
  block.out_channels = out;
  const std::string up = name + (config.is_residual ? "upsampler." : "upsamplers.0.");
  if (config.temporal_upsample[index]) {
    block.time_conv = VaeCausal::Take(from, up + "time_conv", out, 2 * out, {3, 1, 1}, &slots_);
  }
  const int64_t large = config.is_residual ? out : out / 2;
  block.upsampling.emplace(from.Take(up + "resample.1.weight", {large, out, 3, 3}),
                           from.Take(up + "resample.1.bias", {large}));
  return block;
}

Layered PackedVaeNetwork::RunMiddle(const at::Tensor& latents, VaePast* past) const {
  const RowRange all = {0, latents.size(1)};
  const Volume z{post_quant_(latents).unbind(0), all, all.last};
  Layered x = conv_in_.Run(z, all, {true, mid_first_.gamma()}, past);
  x = mid_first_.Run(x, all, {}, past);
  for (at::Tensor& frame : x.plain.frames) {
    frame = mid_attention_.Run(frame.unsqueeze(0)).squeeze(0);
  }
  return mid_last_.Run(x, all, {true, up_blocks_.front().resnets.front().gamma()}, past);
}

void PackedVaeNetwork::Run(const at::Tensor& latents, RowRange rows, bool first_chunk,
                           VaePast* past, const Sink& sink) const {
  const Ascent ascent{
      first_chunk, past, &sink,
      RowsOfLevels(static_cast<int64_t>(up_blocks_.size()),
                   static_cast<int64_t>(up_blocks_.front().resnets.size()), latents.size(1), rows),
      rows};
  RunFrom(0, RunMiddle(latents, past), ascent);
}

void PackedVaeNetwork::RunFrom(size_t level, const Layered& x, const Ascent& ascent) const {
  const Volume& any = x.normed.frames.empty() ? x.plain : x.normed;
  const size_t frames = any.frames.size();
  const int64_t positions = any.rows.size() * any.frames.back().size(1);
  const size_t at_once = static_cast<size_t>(FramesAtOnce(positions));
  for (size_t first = 0; first < frames; first += at_once) {
    const size_t count = std::min(at_once, frames - first);
    const Layered part{Frames(x.plain, first, count), Frames(x.normed, first, count)};
    if (level == up_blocks_.size()) {
      RunOut(part, ascent);
    } else {
      RunFrom(level + 1, RunUpBlock(level, part, ascent), ascent);
    }
  }
}

const at::Tensor& PackedVaeNetwork::GammaAfter(size_t level) const {
  return level + 1 == up_blocks_.size() ? gamma_out_
                                        : up_blocks_[level + 1].resnets.front().gamma();
}

Layered PackedVaeNetwork::RunUpBlock(size_t level, const Layered& x, const Ascent& ascent) const {
  const UpBlock& block = up_blocks_[level];
  const int64_t height = x.plain.height;
  const RowRange made =
      block.upsampling ? ascent.wanted[level].BeforeDoubling(height) : ascent.wanted[level];
  Layered y = x;
  for (size_t i = 0; i < block.resnets.size(); ++i) {
    const bool last = i + 1 == block.resnets.size();
    Layering layering;
    if (!last) layering.gamma = block.resnets[i + 1].gamma();
    if (last && !block.upsampling) layering = {false, GammaAfter(level)};
    const int64_t after = static_cast<int64_t>(block.resnets.size() - 1 - i);
    y = block.resnets[i].Run(y, made.Grown(after * kResBlockGrowth, height), layering, ascent.past);
  }
  if (!block.upsampling) return y;
  return Enlarge(block, x.plain, y.plain, ascent.wanted[level], {true, GammaAfter(level)}, ascent);
}

// x is what the block was given, `source` what its layers made of it.
Layered PackedVaeNetwork::Enlarge(const UpBlock& block, const Volume& x, const Volume& source,
                                  RowRange rows, const Layering& layering,
                                  const Ascent& ascent) const {
  // The video's first frame stays one frame, and later ones do not see it here.
  const bool doubles = block.time_conv && !ascent.first_chunk;
  const Volume frames =
      doubles ? Doubled(block.time_conv->Run(source, source.rows, {}, ascent.past).plain) : source;
  if (!block.shortcut) return block.upsampling->Run(frames, rows, layering, nullptr);
  const Volume added =
      Spread(x, rows, block.out_channels, block.time_conv.has_value(), ascent.first_chunk);
  return block.upsampling->Run(frames, rows, layering, &added);
}

void PackedVaeNetwork::RunOut(const Layered& x, const Ascent& ascent) const {
  const Volume out = conv_out_.Run(x.normed, ascent.rows, {}, ascent.past).plain;
  for (const at::Tensor& frame : out.frames) {
    (*ascent.sink)(Unpatchify(frame.unsqueeze(0), patch_size_).squeeze(0));
  }
}

}  // namespace denoised
