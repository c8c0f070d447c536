#include "runtime/models/vae_layers.h"

namespace denoised {
namespace {

// [T, H, W, C] as ATen's convolutions want it: [1, C, T, H, W], the same memory.
at::Tensor AsVolume(const at::Tensor& x) { return x.permute({3, 0, 1, 2}).unsqueeze(0); }
at::Tensor FromVolume(const at::Tensor& x) {
  return x.squeeze(0).permute({1, 2, 3, 0}).contiguous();
}

// Part `index` of three of a [3C, C, 1, 1] convolution, as a matrix.
Linear TakePointwise(const at::Tensor& weight, const at::Tensor& bias, int64_t index,
                     int64_t channels, LinearNumerics kept) {
  return {weight.flatten(1).narrow(0, index * channels, channels).contiguous(),
          bias.narrow(0, index * channels, channels).contiguous(), kept};
}

}  // namespace

at::Tensor TakeGamma(const LoadOptions& from, const std::string& name, int64_t channels,
                     int trailing_axes) {
  std::vector<int64_t> shape(1 + trailing_axes, 1);
  shape[0] = channels;
  return from.Take(name + ".gamma", shape).view({channels}).to(at::kFloat);
}

CausalConv3d CausalConv3d::Take(const LoadOptions& from, const std::string& name, int64_t in,
                                int64_t out, std::array<int64_t, 3> kernel, size_t* slots) {
  CausalConv3d conv;
  conv.frames_of_kernel_ = kernel[0];
  conv.in_channels_ = in;
  const at::Tensor weight = from.Take(name + ".weight", {out, in, kernel[0], kernel[1], kernel[2]});
  const at::Tensor bias = from.Take(name + ".bias", {out});
  const std::vector<int64_t> padding = {0, kernel[1] / 2, kernel[2] / 2};
  conv.whole_ = Convolution(weight, bias, padding);
  const auto back = [whole = conv.whole_, dtype = from.dtype] { return whole.Weight(dtype); };
  from.Keep(name + ".weight", back);
  if (kernel[0] > 1) {
    conv.last_tap_ = Convolution(weight.narrow(2, kernel[0] - 1, 1), bias, padding);
    conv.slot_ = (*slots)++;
  }
  return conv;
}

at::Tensor CausalConv3d::MakeInput(int64_t frames, int64_t height, int64_t width, VaeState* state,
                                   const at::TensorOptions& options) const {
  const std::vector<int64_t> shape = {history() + frames, height, width, in_channels_};
  const int64_t size = c10::multiply_integers(shape);
  at::Tensor& scratch = state->scratch;
  if (!scratch.defined() || scratch.numel() < size) scratch = at::empty({size}, options);
  return scratch.narrow(0, 0, size).view(shape);
}

at::Tensor CausalConv3d::Run(const at::Tensor& x, VaeState* state) const {
  const at::Tensor input = MakeInput(x.size(0), x.size(1), x.size(2), state, x.options());
  input.narrow(0, history(), x.size(0)).copy_(x);
  return RunFilled(input, state);
}

at::Tensor CausalConv3d::RunFilled(const at::Tensor& input, VaeState* state) const {
  at::Tensor& tail = state->tails[slot_];
  const at::Tensor past = input.narrow(0, 0, history());
  const bool fresh = !tail.defined();
  if (fresh) {
    past.zero_();
  } else {
    past.copy_(tail);
  }
  const int64_t frames = input.size(0) - history();
  tail = input.narrow(0, frames, history()).clone();
  if (fresh && frames == 1) {
    return FromVolume(last_tap_(AsVolume(input.narrow(0, history(), 1))));
  }
  return FromVolume(whole_(AsVolume(input)));
}

VaeResBlock VaeResBlock::Take(const LoadOptions& from, const std::string& name, int64_t in,
                              int64_t out, size_t* slots) {
  VaeResBlock block;
  block.gamma1_ = TakeGamma(from, name + "norm1", in, 3);
  block.conv1_ = CausalConv3d::Take(from, name + "conv1", in, out, {3, 3, 3}, slots);
  block.gamma2_ = TakeGamma(from, name + "norm2", out, 3);
  block.conv2_ = CausalConv3d::Take(from, name + "conv2", out, out, {3, 3, 3}, slots);
  if (in != out) {
    const at::Tensor weight = from.Take(name + "conv_shortcut.weight", {out, in, 1, 1, 1});
    block.shortcut_ =
        Linear(weight.flatten(1), from.Take(name + "conv_shortcut.bias", {out}), from.kept());
  }
  return block;
}

at::Tensor VaeResBlock::Run(const at::Tensor& x, VaeState* state) const {
  const int64_t frames = x.size(0), height = x.size(1), width = x.size(2);
  at::Tensor input = conv1_.MakeInput(frames, height, width, state, x.options());
  RmsNormInto(x, gamma1_, /*silu=*/true, input.narrow(0, conv1_.history(), frames));
  at::Tensor h = conv1_.RunFilled(input, state);
  input = conv2_.MakeInput(frames, height, width, state, x.options());
  RmsNormInto(h, gamma2_, /*silu=*/true, input.narrow(0, conv2_.history(), frames));
  h = conv2_.RunFilled(input, state);
  return h.add_(shortcut_.defined() ? shortcut_(x) : x);
}

VaeAttention VaeAttention::Take(const LoadOptions& from, const std::string& name,
                                int64_t channels) {
  VaeAttention attention;
  attention.gamma_ = TakeGamma(from, name + "norm", channels, 2);
  const at::Tensor weight = from.Take(name + "to_qkv.weight", {3 * channels, channels, 1, 1});
  const at::Tensor bias = from.Take(name + "to_qkv.bias", {3 * channels});
  attention.q_ = TakePointwise(weight, bias, 0, channels, from.kept());
  attention.k_ = TakePointwise(weight, bias, 1, channels, from.kept());
  attention.v_ = TakePointwise(weight, bias, 2, channels, from.kept());
  attention.proj_ = {from.Take(name + "proj.weight", {channels, channels, 1, 1}).flatten(1),
                     from.Take(name + "proj.bias", {channels}), from.kept()};
  return attention;
}

at::Tensor VaeAttention::Run(const at::Tensor& x) const {
  at::Tensor n = at::empty_like(x);
  RmsNormInto(x, gamma_, /*silu=*/false, n);
  n = n.flatten(1, 2);  // [T, H W, C]
  const AttentionLayer run(AttentionRole::kVae, /*layer_index=*/0);
  const at::Tensor out =
      run.Forward(q_(n).unsqueeze(2), k_(n).unsqueeze(2), v_(n).unsqueeze(2)).squeeze(2);
  return proj_(out).view(x.sizes()).add_(x);
}

VaeUpsample VaeUpsample::Take(const LoadOptions& from, const std::string& name, int64_t in,
                              int64_t out, bool temporal, size_t* slots) {
  VaeUpsample up;
  up.temporal_ = temporal;
  if (temporal) {
    up.time_conv_ = CausalConv3d::Take(from, name + "time_conv", in, 2 * in, {3, 1, 1}, slots);
  }
  up.per_frame_ = Convolution(from.Take(name + "resample.1.weight", {out, in, 3, 3}),
                              from.Take(name + "resample.1.bias", {out}), {1, 1});
  return up;
}

at::Tensor VaeUpsample::Run(const at::Tensor& x, VaeState* state) const {
  const int64_t frames = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  // The video's first frame stays one frame, and later ones do not see it here.
  const bool doubles = temporal_ && !state->first_chunk;
  const int64_t copies = doubles ? 2 : 1;
  const at::Tensor source = doubles ? time_conv_.Run(x, state) : x;  // [T, H, W, copies * C]
  const at::Tensor large = source.view({frames, height, 1, width, 1, copies, channels})
                               .permute({0, 5, 1, 2, 3, 4, 6})
                               .expand({frames, copies, height, 2, width, 2, channels})
                               .reshape({frames * copies, 2 * height, 2 * width, channels});
  return per_frame_(large.permute({0, 3, 1, 2})).permute({0, 2, 3, 1}).contiguous();
}

at::Tensor DuplicateUp(const at::Tensor& x, int64_t out_channels, bool temporal, bool first_chunk) {
  const int64_t ft = temporal ? 2 : 1, frames = x.size(0), height = x.size(1), width = x.size(2);
  const int64_t repeats = out_channels * ft * 4 / x.size(3);
  const at::Tensor up = x.repeat_interleave(repeats, -1)
                            .view({frames, height, width, out_channels, ft, 2, 2})
                            .permute({0, 4, 1, 5, 2, 6, 3})
                            .reshape({frames * ft, 2 * height, 2 * width, out_channels});
  return first_chunk ? up.narrow(0, ft - 1, up.size(0) - (ft - 1)) : up;
}

at::Tensor Unpatchify(const at::Tensor& x, int64_t patch_size) {
  if (patch_size == 1) return x;
  const int64_t p = patch_size, frames = x.size(0), height = x.size(1), width = x.size(2);
  const int64_t channels = x.size(3) / (p * p);
  return x.view({frames, height, width, channels, p, p})
      .permute({0, 1, 5, 2, 4, 3})
      .reshape({frames, height * p, width * p, channels});
}

}  // namespace denoised
