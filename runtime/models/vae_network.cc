#include "runtime/models/vae_network.h"

namespace denoised {

WanVaeNetwork::WanVaeNetwork(const WanVaeConfig& config, const LoadOptions& from)
    : patch_size_(config.patch_size) {
  const int64_t z = config.z_dim;
  const at::Tensor weight = from.Take("post_quant_conv.weight", {z, z, 1, 1, 1});
  post_quant_ = {weight.flatten(1), from.Take("post_quant_conv.bias", {z}), from.kept()};
  const std::vector<int64_t> widths = config.Widths();
  conv_in_ = CausalConv3d::Take(from, "decoder.conv_in", z, widths[0], {3, 3, 3}, &slots_);
  const std::string mid = "decoder.mid_block.";
  mid_first_ = VaeResBlock::Take(from, mid + "resnets.0.", widths[0], widths[0], &slots_);
  mid_attention_ = VaeAttention::Take(from, mid + "attentions.0.", widths[0]);
  mid_last_ = VaeResBlock::Take(from, mid + "resnets.1.", widths[0], widths[0], &slots_);
  for (size_t i = 0; i + 1 < widths.size(); ++i) {
    up_blocks_.push_back(TakeUpBlock(config, from, i, config.UpBlockInput(i), widths[i + 1]));
  }
  gamma_out_ = TakeGamma(from, "decoder.norm_out", widths.back(), 3);
  conv_out_ = CausalConv3d::Take(from, "decoder.conv_out", widths.back(), config.out_channels,
                                 {3, 3, 3}, &slots_);
}

WanVaeNetwork::UpBlock WanVaeNetwork::TakeUpBlock(const WanVaeConfig& config,
                                                  const LoadOptions& from, size_t index, int64_t in,
                                                  int64_t out) {
  const std::string name = "decoder.up_blocks." + std::to_string(index) + ".";
  UpBlock block;
  for (int64_t i = 0; i <= config.num_res_blocks; ++i) {
    const std::string resnet = name + "resnets." + std::to_string(i) + ".";
    block.resnets.push_back(VaeResBlock::Take(from, resnet, i == 0 ? in : out, out, &slots_));
  }
  if (index + 1 == config.dim_mult.size()) return block;
  block.temporal = config.temporal_upsample[index];
  block.shortcut = config.is_residual;
  block.out_channels = out;
  const std::string upsampler = name + (config.is_residual ? "upsampler." : "upsamplers.0.");
  block.upsample = VaeUpsample::Take(from, upsampler, out, config.is_residual ? out : out / 2,
                                     block.temporal, &slots_);
  return block;
}

VaeState WanVaeNetwork::MakeState() const {
  VaeState state;
  state.tails.resize(slots_);
  return state;
}

at::Tensor WanVaeNetwork::Run(const at::Tensor& latents, VaeState* state) const {
  at::Tensor x = conv_in_.Run(post_quant_(latents), state);
  x = mid_last_.Run(mid_attention_.Run(mid_first_.Run(x, state)), state);
  for (const UpBlock& block : up_blocks_) x = RunUpBlock(block, x, state);
  const at::Tensor input = conv_out_.MakeInput(x.size(0), x.size(1), x.size(2), state, x.options());
  RmsNormInto(x, gamma_out_, /*silu=*/true, input.narrow(0, conv_out_.history(), x.size(0)));
  at::Tensor frames = Unpatchify(conv_out_.RunFilled(input, state), patch_size_);
  state->first_chunk = false;
  return frames;
}

at::Tensor WanVaeNetwork::RunUpBlock(const UpBlock& block, const at::Tensor& x,
                                     VaeState* state) const {
  at::Tensor y = x;
  for (const VaeResBlock& resnet : block.resnets) y = resnet.Run(y, state);
  if (block.upsample) y = block.upsample->Run(y, state);
  if (!block.shortcut) return y;
  return y.add_(DuplicateUp(x, block.out_channels, block.temporal, state->first_chunk));
}

}  // namespace denoised
