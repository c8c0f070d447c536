#include "runtime/models/layers.h"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <string_view>

#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/stop_point.h"

namespace denoised {
namespace {

std::string ShapeText(const at::Tensor& x) {
  std::ostringstream text;
  text << x.sizes();
  return text.str();
}

Linear TakeAs(const LoadOptions& from, at::ScalarType dtype, const std::string& name, int64_t in,
              int64_t out, bool with_bias, bool tolerant) {
  const auto with = [&](const auto& weight) {
    at::Tensor bias;
    if (with_bias) bias = from.weights->Take(name + ".bias", {out}, dtype, from.device);
    Linear layer(weight, bias, from.kept(), tolerant);
    layer.CountMadeBytes(from.made_bytes);
    return layer;
  };
  const std::string weight = name + ".weight";
  return from.kept() == LinearNumerics::kExact
             ? with(from.weights->Take(weight, {out, in}, dtype, from.device))
             : with(from.weights->TakeRows(weight, out, in, dtype));
}

// LibTorch registers these for its compiler and declares them in no header.
at::Tensor CallMkldnn(const char* name, std::vector<c10::IValue> arguments) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&arguments);
  return arguments.front().toTensor();
}

at::MemoryFormat ChannelsLast(const at::Tensor& weight) {
  return weight.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

at::Tensor PackConvolutionWeight(const at::Tensor& weight, const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& ones) {
  // oneDNN chooses the blocks for an input size; any other size works with them.
  constexpr int64_t kTypicalSide = 32;
  std::vector<int64_t> input(weight.dim(), kTypicalSide);
  input[0] = 1;
  input[1] = weight.size(1);
  if (weight.dim() == 5) input[2] = weight.size(2);
  return CallMkldnn("mkldnn::_reorder_convolution_weight",
                    {weight, padding, ones, ones, int64_t{1}, input});
}

at::Tensor RunPackedConvolution(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& bias, const std::vector<int64_t>& padding,
                                const std::vector<int64_t>& ones) {
  // at::mkldnn_convolution would take the same weight, but make the input channels-first.
  const c10::List<std::optional<at::Scalar>> none;
  return CallMkldnn("mkldnn::_convolution_pointwise",
                    {x, weight, bias, padding, ones, ones, int64_t{1}, "none", none, ""});
}

at::Tensor EmptyResult(const kernels::WeightPanels& panels, const LinearInput& in) {
  std::vector<int64_t> shape = in.sizes().vec();
  shape.back() = panels.n();
  return at::empty(shape, at::TensorOptions(in.dtype()));
}

// What memory of its own begins at a multiple of: what at::empty gives, on a CPU and by CUDA.
bool LiesAlone(const at::Tensor& x) {
  const uintptr_t evenly = x.is_cpu() ? 64 : 512;
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % evenly == 0;
}

// In their place.
at::Tensor Activated(at::Tensor sums, Activation activation) {
  if (activation == Activation::kGeluTanh) at::gelu_(sums, "tanh");
  if (activation == Activation::kSilu) at::silu_(sums);
  return sums;
}

bool CpuMultipliesBFloat16() { return ThisCpu().avx512_bf16 || ThisCpu().amx_bf16; }

// Without instructions for bfloat16 oneDNN convolves it by its reference code, hundreds of times
// slower than float32; the sums are float32 either way, and are rounded once.
bool ConvolvesWidened(at::ScalarType dtype) {
  return dtype == at::kBFloat16 && !CpuMultipliesBFloat16();
}

}  // namespace

at::Tensor BlockLinearWeight(const at::Tensor& weight) {
  return CallMkldnn("mkldnn::_reorder_linear_weight", {weight, /*batch_size=*/c10::IValue()});
}

at::Tensor RunBlockedLinear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  using Scalars = c10::List<std::optional<at::Scalar>>;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            std::string_view, Scalars, std::optional<std::string_view>)>();
  const std::optional<at::Tensor> b = bias.defined() ? std::optional(bias) : std::nullopt;
  return op.call(x, weight, b, "none", Scalars(), "");
}

at::Tensor Joined(std::vector<at::Tensor> parts) {
  return parts.size() == 1 ? std::move(parts.front()) : at::cat(parts);
}

at::Tensor RowsAlone(const at::Tensor& x, int64_t first, int64_t rows) {
  const at::Tensor part = first == 0 && rows == x.size(0) ? x : x.narrow(0, first, rows);
  return LiesAlone(part) ? part : part.clone();
}

const DeviceInfo& ThisCpu() {
  static const DeviceInfo cpu = QueryCpu();
  return cpu;
}

kernels::Element ElementOf(at::ScalarType dtype) {
  return dtype == at::kFloat ? kernels::Element::kFloat32 : kernels::Element::kBFloat16;
}

OwnKernels::OwnKernels(const LoadOptions& from)
    : possible(LoadOptions::CanPack(from.dtype, from.device)), kept(from.kept()) {}

bool OwnKernels::InUse() const {
  return possible && CurrentLinearNumerics(kept) != LinearNumerics::kExact;
}

Linear::Linear(const at::Tensor& bias, at::ScalarType dtype, int64_t in, LinearNumerics kept,
               bool tolerant)
    : bias_(bias), dtype_(dtype), kept_(kept), int8_fits_(tolerant && FitsInt8(in)) {
  if (kept_ == LinearNumerics::kInt8 && !int8_fits_) kept_ = LinearNumerics::kPacked;
  if (bias.defined()) float_bias_ = bias.to(at::kFloat).contiguous();
}

Linear::Linear(const at::Tensor& weight, const at::Tensor& bias, LinearNumerics kept, bool tolerant)
    : Linear(bias, weight.scalar_type(), weight.size(1), kept, tolerant) {
  if (kept_ != LinearNumerics::kExact) {
    Keep(Pack(weight, kept_));
  } else if (weight.is_cpu() && dtype_ == at::kBFloat16 && CpuMultipliesBFloat16() &&
             !ThisCpu().amx_bf16) {  // with tiles blocked weights are summed in another order
    blocked_ = true;
    weight_ = BlockLinearWeight(weight.contiguous());
  } else {
    weight_ = weight;
  }
}

Linear::Linear(const WeightRows& weight, const at::Tensor& bias, LinearNumerics kept, bool tolerant)
    : Linear(bias, weight.dtype, weight.columns, kept, tolerant) {
  TORCH_CHECK(kept_ != LinearNumerics::kExact, "linear: exact numerics take a whole tensor");
  Keep(std::make_shared<const kernels::WeightPanels>(weight.read, ElementOf(dtype_), weight.rows,
                                                     weight.columns, IsaFor(kept_),
                                                     RunOnIntraOpThreads));
}

at::Tensor Linear::operator()(const LinearInput& x, Activation activation,
                              at::IntArrayRef parts) const {
  StopPoint();
  if (const SharedPanels panels = PanelsNow()) {
    const LinearInput in = x.Dense();
    const at::Tensor out = EmptyResult(*panels, in);
    kernels::GemmCall call = CallOn(*panels, in);
    call.y = out.mutable_data_ptr();
    call.activation = activation;
    kernels::Gemm(call, *panels, RunOnIntraOpThreads);
    return out;
  }
  return RunExact(x.Whole(), activation, parts);
}

std::vector<at::Tensor> Linear::RunAll(const std::vector<const Linear*>& layers,
                                       const LinearInput& x, at::IntArrayRef parts,
                                       const ResultsDone& done) {
  std::vector<SharedPanels> panels;
  for (const Linear* layer : layers) panels.push_back(layer->PanelsNow());
  const auto as_the_first = [&](const SharedPanels& p) {
    return p && p->isa() == panels[0]->isa();
  };
  std::vector<at::Tensor> results;
  if (!std::ranges::all_of(panels, as_the_first)) {
    const at::Tensor whole = x.Whole();
    for (const Linear* layer : layers) {
      results.push_back((*layer)(whole, Activation::kNone, parts));
    }
    if (done) done(results, 0, whole.numel() / whole.size(-1));
    return results;
  }
  StopPoint();
  const LinearInput in = x.Dense();
  std::vector<kernels::GemmProduct> products;
  for (size_t i = 0; i < layers.size(); ++i) {
    results.push_back(EmptyResult(*panels[i], in));
    products.push_back({layers[i]->CallOn(*panels[i], in), panels[i].get()});
    products[i].call.y = results[i].mutable_data_ptr();
  }
  kernels::RowsDone rows_done;
  if (done) rows_done = [&](int64_t first, int64_t count) { done(results, first, count); };
  kernels::GemmMany(products, RunOnIntraOpThreads, nullptr, rows_done);
  return results;
}

void Linear::AddTo(const at::Tensor& hidden, const LinearInput& x, const at::Tensor& gate,
                   const at::Tensor& index) const {
  StopPoint();
  const SharedPanels panels = PanelsNow();
  TORCH_CHECK(panels && hidden.is_contiguous() && hidden.scalar_type() == at::kFloat,
              "linear: only our own product adds, to dense float32");
  const LinearInput in = x.Dense();
  kernels::GemmCall call = CallOn(*panels, in);
  call.add_to = hidden.mutable_data_ptr<float>();
  if (gate.defined()) {
    const bool one_a_batch = (index.defined() ? index : gate).size(1) == 1;
    call.gate = gate.const_data_ptr<float>();
    call.gate_stride = gate.stride(one_a_batch || index.defined() ? 0 : 1);
    call.rows_a_gate = one_a_batch ? in.size(1) : 1;
    if (index.defined()) call.gate_index = index.const_data_ptr<int32_t>();
  }
  kernels::Gemm(call, *panels, RunOnIntraOpThreads);
}

// What the numerics of the call multiply by; null where that is ATen's.
Linear::SharedPanels Linear::PanelsNow() const {
  switch (CurrentLinearNumerics(kept_)) {
    case LinearNumerics::kInt8:
      return int8_fits_ ? Int8Panels() : Panels();
    case LinearNumerics::kPacked:
      return Panels();
    case LinearNumerics::kExact:
      break;
  }
  return nullptr;
}

// Rows and bias; where the result goes is for the caller to say.
kernels::GemmCall Linear::CallOn(const kernels::WeightPanels& panels, const LinearInput& in) const {
  TORCH_CHECK(in.dtype() == dtype_ && in.size(-1) == panels.k(), "linear: wanted rows of ",
              panels.k(), " ", dtype_, ", came ", in.sizes(), " ", in.dtype());
  kernels::GemmCall call;
  call.rows = c10::multiply_integers(in.sizes()) / panels.k();
  call.x = in.data();
  call.x_stride = panels.k();
  call.read = in.rows();
  call.y_stride = panels.n();
  call.bias = float_bias_.defined() ? float_bias_.const_data_ptr<float>() : nullptr;
  return call;
}

at::Tensor Linear::RunExact(const at::Tensor& x, Activation activation,
                            at::IntArrayRef parts) const {
  const at::Tensor weight = blocked_ ? weight_ : Weight();
  if (parts.size() < 2) return Activated(RunPart(x, weight), activation);
  std::vector<int64_t> shape = x.sizes().vec();
  const int64_t in = shape.back(), out = shape.back() = weight.size(0);
  at::Tensor result = at::empty(shape, x.options());
  int64_t first = 0;
  for (const int64_t rows : parts) {
    StopPoint();
    const at::Tensor part = RowsAlone(x, first, rows), place = result.narrow(0, first, rows);
    if (!blocked_ && bias_.defined() && LiesAlone(place)) {
      // What at::linear does with dense x, without memory of its own.
      at::Tensor flat = place.view({-1, out});
      Activated(at::linear_out(flat, part.view({-1, in}), weight, bias_), activation);
    } else {
      place.copy_(Activated(RunPart(part, weight), activation));
    }
    first += rows;
  }
  return result;
}

at::Tensor Linear::RunPart(const at::Tensor& x, const at::Tensor& weight) const {
  return blocked_ ? RunBlockedLinear(x, weight, bias_) : at::linear(x, weight, bias_);
}

// Of the packed numerics and of int8.
kernels::GemmIsa Linear::IsaFor(LinearNumerics numerics) const {
  return numerics == LinearNumerics::kInt8 ? kernels::Int8GemmIsa(ThisCpu())
                                           : kernels::BestGemmIsa(ElementOf(dtype_), ThisCpu());
}

Linear::SharedPanels Linear::Pack(const at::Tensor& weight, LinearNumerics numerics) const {
  const at::Tensor rows = weight.contiguous();
  return std::make_shared<const kernels::WeightPanels>(rows.const_data_ptr(), ElementOf(dtype_),
                                                       rows.size(0), rows.size(1), IsaFor(numerics),
                                                       RunOnIntraOpThreads);
}

void Linear::Keep(SharedPanels panels) {
  (kept_ == LinearNumerics::kInt8 ? int8_ : panels_) = std::move(panels);
}

Linear::SharedPanels Linear::Panels() const {
  return panels_ ? panels_ : Pack(Weight(), LinearNumerics::kPacked);
}

Linear::SharedPanels Linear::Int8Panels() const {
  if (int8_) return int8_;
  int8_ = Pack(Weight(), LinearNumerics::kInt8);
  if (made_bytes_ != nullptr) *made_bytes_ += int8_->bytes();
  return int8_;
}

at::Tensor Linear::Weight() const {
  TORCH_CHECK(kept_ != LinearNumerics::kInt8, "linear: only the int8 form of the weights is kept");
  if (panels_) return Unpacked();
  return blocked_ ? weight_.to_dense() : weight_;
}

at::Tensor Linear::Unpacked() const {
  at::Tensor weight = at::empty({panels_->n(), panels_->k()}, at::TensorOptions(dtype_));
  panels_->Unpack(weight.mutable_data_ptr(), RunOnIntraOpThreads);
  return weight;
}

Linear Linear::Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                    bool with_bias) {
  return TakeAs(from, from.dtype, name, in, out, with_bias, false);
}

Linear Linear::TakeTolerant(const LoadOptions& from, const std::string& name, int64_t in,
                            int64_t out) {
  return TakeAs(from, from.dtype, name, in, out, true, true);
}

Linear Linear::TakeFloat(const LoadOptions& from, const std::string& name, int64_t in,
                         int64_t out) {
  return TakeAs(from, at::kFloat, name, in, out, true, false);
}

Convolution::Convolution(const at::Tensor& weight, const at::Tensor& bias,
                         std::vector<int64_t> padding)
    : weight_(weight.contiguous(ChannelsLast(weight))),
      bias_(bias),
      padding_(std::move(padding)),
      ones_(padding_.size(), 1) {
  const at::ScalarType dtype = weight.scalar_type();
  packed_ = weight.is_cpu() && (dtype == at::kFloat || dtype == at::kBFloat16);
  if (packed_ && ConvolvesWidened(dtype)) {
    weight_ = weight_.to(at::kFloat);
    if (bias_.defined()) bias_ = bias_.to(at::kFloat);
  }
  if (packed_) weight_ = PackConvolutionWeight(weight_, padding_, ones_);
}

at::Tensor Convolution::Weight(at::ScalarType dtype) const {
  return (packed_ ? weight_.to_dense() : weight_).to(dtype).contiguous();
}

at::Tensor Convolution::operator()(const at::Tensor& x) const {
  StopPoint();
  if (packed_ && ConvolvesWidened(x.scalar_type())) {
    return RunPackedConvolution(x.to(at::kFloat), weight_, bias_, padding_, ones_)
        .to(at::kBFloat16);
  }
  if (packed_) return RunPackedConvolution(x, weight_, bias_, padding_, ones_);
  return at::convolution(x, weight_, bias_, ones_, padding_, ones_, /*transposed=*/false,
                         std::vector<int64_t>(padding_.size(), 0), /*groups=*/1);
}

DType SpecDType(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kDouble:
      return DType::kFloat64;
    default:
      throw Error(StatusCode::kInvalidArgument,
                  std::string("dtype: wanted a floating one, came ") + at::toString(dtype), "dtype",
                  "UNSUPPORTED_DTYPE");
  }
}

void RequireDim(const at::Tensor& x, int64_t dims, const std::string& what) {
  if (x.defined() && x.dim() == dims && x.numel() > 0) return;
  throw InvalidField(what, "wanted " + std::to_string(dims) + " axes of at least 1, came " +
                               (x.defined() ? ShapeText(x) : std::string("none")));
}

void RequireSize(const at::Tensor& x, int64_t axis, int64_t size, const std::string& what) {
  if (x.size(axis) == size) return;
  throw InvalidField(what, "axis " + std::to_string(axis) + ": wanted " + std::to_string(size) +
                               ", came " + ShapeText(x));
}

}  // namespace denoised
