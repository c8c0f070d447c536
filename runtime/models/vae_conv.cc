#include "runtime/models/vae_conv.h"

#include <algorithm>

#include "backends/intra_op.h"
#include "backends/kernels/gemm_tile.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

// As the kernel wants one number a channel: float32, zeros up to whole panels.
at::Tensor WholePanels(const at::Tensor& x, const kernels::WeightPanels& panels) {
  at::Tensor padded = at::zeros({panels.panels() * kernels::kPanelColumns}, at::kFloat);
  padded.narrow(0, 0, x.numel()).copy_(x);
  return padded;
}

Volume NewVolume(const Volume& like, size_t frames, RowRange rows, int64_t height, int64_t width,
                 int64_t channels) {
  Volume volume{{}, rows, height};
  const at::TensorOptions options = like.frames.back().options();
  for (size_t t = 0; t < frames; ++t) {
    volume.frames.push_back(at::empty({rows.size(), width, channels}, options));
  }
  return volume;
}

// Addresses of the frames of a result, `row` and `column` into each.
std::vector<void*> Addresses(const Volume& volume, int64_t row, int64_t column) {
  std::vector<void*> at;
  for (const at::Tensor& frame : volume.frames) {
    const int64_t offset = row * frame.stride(0) + column * frame.stride(1);
    at.push_back(static_cast<char*>(frame.mutable_data_ptr()) + offset * frame.element_size());
  }
  return at;
}

}  // namespace

// Where a convolution's result goes, in frames of its rows.
struct VaeConvolution::Target {
  Layered* layered;
  at::Tensor gamma;
  const Volume* added;
  RowRange rows;                // those of `layered`
  int64_t row = 0, column = 0;  // of the first result in the frame that it belongs to
  int64_t spread = 1;           // rows and columns from one result to the next
};

VaeConvolution::VaeConvolution(const at::Tensor& weight, const at::Tensor& bias)
    : taps_{weight.size(2), weight.size(3), weight.size(4)}, in_channels_(weight.size(1)) {
  const kernels::Element element = ElementOf(weight.scalar_type());
  const kernels::GemmIsa isa = kernels::BestConvolutionIsa(element, ThisCpu());
  const int64_t out = weight.size(0);
  at::Tensor taps =
      at::zeros({out, taps_.count(), kernels::TapChannels(in_channels_, isa)}, weight.options());
  taps.narrow(2, 0, in_channels_).copy_(weight.flatten(2).transpose(1, 2));
  panels_ = std::make_shared<const kernels::WeightPanels>(
      taps.const_data_ptr(), element, out, taps.size(1) * taps.size(2), isa, RunOnIntraOpThreads);
  bias_ = WholePanels(bias, *panels_);
  if (PointBytes(weight.sizes(), weight.scalar_type()) == 0) return;
  winograd_ = std::make_shared<const kernels::WinogradWeight>(
      taps.const_data_ptr<float>(), taps_, in_channels_, out, isa, RunOnIntraOpThreads);
}

int64_t VaeConvolution::PointBytes(at::IntArrayRef weight, at::ScalarType dtype) {
  if (weight.size() != 5) return 0;
  const kernels::Taps taps{weight[2], weight[3], weight[4]};
  const kernels::Element element = ElementOf(dtype);
  const kernels::GemmIsa isa = kernels::BestConvolutionIsa(element, ThisCpu());
  const bool suits = kernels::WinogradWeight::Suits(taps, weight[1], weight[0], element, isa);
  return suits ? kernels::WinogradWeight::BytesOf(taps, weight[1], weight[0]) : 0;
}

at::Tensor VaeConvolution::Weight() const {
  const at::ScalarType dtype =
      panels_->element() == kernels::Element::kFloat32 ? at::kFloat : at::kBFloat16;
  at::Tensor taps = at::empty({panels_->n(), taps_.count(), panels_->k() / taps_.count()}, dtype);
  panels_->Unpack(taps.mutable_data_ptr(), RunOnIntraOpThreads);
  return taps.narrow(2, 0, in_channels_)
      .transpose(1, 2)
      .reshape({panels_->n(), in_channels_, taps_.frames, taps_.rows, taps_.columns});
}

Layered VaeConvolution::Run(const Volume& in, RowRange rows, const Layering& layering,
                            const Volume* added) const {
  const size_t frames = in.frames.size() - static_cast<size_t>(taps_.frames - 1);
  const int64_t width = in.frames.back().size(1);
  Layered result;
  if (layering.plain) {
    result.plain = NewVolume(in, frames, rows, in.height, width, panels_->n());
  }
  if (layering.gamma.defined()) {
    result.normed = NewVolume(in, frames, rows, in.height, width, panels_->n());
  }
  Into(in, rows, rows.first - in.rows.first - taps_.rows / 2, -taps_.columns / 2,
       {&result, layering.gamma, added, rows, rows.first, 0, 1});
  return result;
}

void VaeConvolution::Into(const Volume& in, RowRange rows, int64_t first_row, int64_t first_column,
                          const Target& target) const {
  StopPoint();
  std::vector<const void*> inputs;
  for (const at::Tensor& frame : in.frames) {
    inputs.push_back(frame.defined() ? frame.const_data_ptr() : nullptr);
  }
  const Volume& plain = target.layered->plain;
  const Volume& normed = target.layered->normed;
  const at::Tensor& like = (plain.frames.empty() ? normed : plain).frames.front();
  const int64_t row = target.row - target.rows.first;
  const std::vector<void*> out = Addresses(plain, row, target.column);
  const std::vector<void*> out_normed = Addresses(normed, row, target.column);
  std::vector<const void*> added;
  if (target.added != nullptr) {
    const int64_t above = target.row - target.added->rows.first;
    const std::vector<void*> at = Addresses(*target.added, above, target.column);
    added.assign(at.begin(), at.end());
  }
  at::Tensor gamma;
  if (target.gamma.defined()) gamma = WholePanels(target.gamma, *panels_);
  kernels::ConvolutionCall call;
  call.taps = taps_;
  call.channels = in_channels_;
  call.in = inputs.data();
  call.in_rows = in.rows.size();
  call.in_columns = in.frames.back().size(1);
  call.in_step = in.frames.back().stride(1);
  call.first_row = first_row;
  call.first_column = first_column;
  call.frames = static_cast<int64_t>(in.frames.size()) - taps_.frames + 1;
  call.rows = rows.size();
  call.columns = call.in_columns;
  call.origin_row = rows.first;
  call.bias = bias_.const_data_ptr<float>();
  call.added = added.empty() ? nullptr : added.data();
  call.out = out.empty() ? nullptr : out.data();
  call.out_row_step = target.spread * like.stride(0);
  call.out_step = target.spread * like.stride(1);
  if (gamma.defined()) {
    call.gamma = gamma.const_data_ptr<float>();
    call.silu = true;
    call.normed = out_normed.data();
  }
  if (winograd_) return kernels::ConvolveWinograd(call, *winograd_, RunOnIntraOpThreads);
  kernels::Convolve(call, *panels_, RunOnIntraOpThreads);
}

VaeCausal VaeCausal::Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                          std::array<int64_t, 3> kernel, size_t* slots) {
  VaeCausal causal;
  causal.convolution_ = {from.Take(name + ".weight", {out, in, kernel[0], kernel[1], kernel[2]}),
                         from.Take(name + ".bias", {out})};
  from.Keep(name + ".weight", [convolution = causal.convolution_] { return convolution.Weight(); });
  causal.history_ = static_cast<size_t>(kernel[0] - 1);
  causal.slot_ = (*slots)++;
  return causal;
}

Layered VaeCausal::Run(const Volume& in, RowRange rows, const Layering& layering, VaePast* past,
                       const Volume* added) const {
  std::vector<at::Tensor>& tail = (*past)[slot_];
  tail.resize(history_);  // frames of zeros before the first
  Volume whole = in;
  whole.frames.insert(whole.frames.begin(), tail.begin(), tail.end());
  tail.assign(whole.frames.end() - static_cast<std::ptrdiff_t>(history_), whole.frames.end());
  return convolution_.Run(whole, rows, layering, added);
}

VaeUpsampling::VaeUpsampling(const at::Tensor& weight, const at::Tensor& bias) {
  const at::Tensor wide = weight.to(at::kDouble);
  // Taps along an axis that fall on the same of two positions: before and at an even result's own,
  // at and after an odd one's.
  const auto fold = [](const at::Tensor& w, int64_t axis, bool odd) {
    const int64_t alone = odd ? 2 : 0;
    const at::Tensor one = w.narrow(axis, alone, 1);
    const at::Tensor two = w.narrow(axis, odd ? 0 : 1, 2).sum(axis, /*keepdim=*/true);
    return odd ? at::cat({two, one}, axis) : at::cat({one, two}, axis);
  };
  for (int phase = 0; phase < 4; ++phase) {
    const at::Tensor folded = fold(fold(wide, 2, phase / 2 == 1), 3, phase % 2 == 1);
    phases_[static_cast<size_t>(phase)] = {folded.to(weight.scalar_type()).unsqueeze(2), bias};
  }
}

Layered VaeUpsampling::Run(const Volume& in, RowRange rows, const Layering& layering,
                           const Volume* added) const {
  const int64_t height = 2 * in.height, width = 2 * in.frames.back().size(1);
  const int64_t channels = phases_[0].panels_->n();
  Layered result;
  if (layering.plain) result.plain = NewVolume(in, in.frames.size(), rows, height, width, channels);
  if (layering.gamma.defined()) {
    result.normed = NewVolume(in, in.frames.size(), rows, height, width, channels);
  }
  for (int64_t phase = 0; phase < 4; ++phase) {
    const int64_t odd_row = phase / 2, odd_column = phase % 2;
    const RowRange half = {(rows.first - odd_row + 1) / 2, (rows.last - odd_row + 1) / 2};
    if (half.size() <= 0) continue;
    phases_[static_cast<size_t>(phase)].Into(
        in, half, half.first - in.rows.first - 1 + odd_row, -1 + odd_column,
        {&result, layering.gamma, added, rows, 2 * half.first + odd_row, odd_column, 2});
  }
  return result;
}

}  // namespace denoised
