// The two layers that every model here shares, and the checks on what comes in. ATen; engine
// thread. Each call of a layer begins with a stop point (backends/stop_point.h): so a forward can
// be left between any two products.
#ifndef DENOISED_RUNTIME_MODELS_LAYERS_H_
#define DENOISED_RUNTIME_MODELS_LAYERS_H_

#include <ATen/ATen.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/attention_spec.h"
#include "backends/kernels/gemm.h"
#include "runtime/loaders/weights.h"
#include "runtime/models/linear_input.h"
#include "runtime/numerics.h"

namespace denoised {

// How the tensors of a component come back from the form that its layers keep them in.
struct KeptTensors {
  std::map<std::string, std::function<at::Tensor()>> by_name;
  int64_t bytes = 0;
};

// Where and how the tensors of a component are taken from its files.
struct LoadOptions {
  Weights* weights;
  at::ScalarType dtype;  // of every tensor that a model does not keep in float32
  at::Device device;
  LinearNumerics linear = LinearNumerics::kPacked;  // what most calls will ask for
  KeptTensors* keeps = nullptr;                     // gets what Take gives and Keep is told
  const KeptTensors* instead = nullptr;             // of the files
  // Grows by the bytes of every form of weights that a call makes and that stays; outlives the
  // layers. Null: nobody counts.
  std::atomic<int64_t>* made_bytes = nullptr;

  // Our kernels are for CPUs, float32 and bfloat16; anything else is exact whatever is wanted.
  LinearNumerics kept() const { return CanPack(dtype, device) ? linear : LinearNumerics::kExact; }
  static bool CanPack(at::ScalarType dtype, at::Device device) {
    return device.is_cpu() && (dtype == at::kFloat || dtype == at::kBFloat16);
  }

  at::Tensor Take(const std::string& name, at::IntArrayRef shape) const {
    if (instead != nullptr) return instead->by_name.at(name)();
    const at::Tensor tensor = weights->Take(name, shape, dtype, device);
    Keep(name, [tensor] { return tensor; });
    if (keeps != nullptr) keeps->bytes += static_cast<int64_t>(tensor.nbytes());
    return tensor;
  }
  // A layer that does not hold the tensor itself says how it comes back.
  void Keep(const std::string& name, std::function<at::Tensor()> back) const {
    if (keeps != nullptr) keeps->by_name[name] = std::move(back);
  }
  at::Tensor TakeFloat(const std::string& name, at::IntArrayRef shape) const {
    return weights->Take(name, shape, at::kFloat, device);
  }
};

// This process' CPU, under its pin.
const DeviceInfo& ThisCpu();
// Of float32 and bfloat16.
kernels::Element ElementOf(at::ScalarType dtype);

// Whether a model computes by our own product and row kernels: where its device and dtype allow it,
// and the numerics of the moment are not exact ones.
struct OwnKernels {
  OwnKernels() = default;
  explicit OwnKernels(const LoadOptions& from);
  bool InUse() const;

  bool possible = false;
  LinearNumerics kept = LinearNumerics::kExact;  // the form of the model's weights
};

// What a linear layer does to its sums before they are rounded.
using kernels::Activation;

// Rows `first` to `first + rows` of x, whose first element lies as it would in memory of its own:
// libraries add in another order where it lies less evenly.
at::Tensor RowsAlone(const at::Tensor& x, int64_t first, int64_t rows);
// The rows of all, one after the other; what is alone as it is.
at::Tensor Joined(std::vector<at::Tensor> parts);

// y = x W^T + b over the last axis, as CurrentLinearNumerics says. Cheap to copy (what it holds is
// shared).
//
// The weights are kept once: packed, in the panels of our own matrix product
// (backends/kernels/gemm.h); exact, as at::linear takes them, bfloat16 ones on a CPU with bfloat16
// dot products in oneDNN's blocked layout, which spares a reordering in every call. Both forms hold
// the same numbers: a call that asks for the other converts them for itself.
//
// A layer that bears int8 may be kept so, a byte a weight, and then gives nothing else; kept
// otherwise, its int8 form is made by the first call that asks, and stays. Asked for int8, the
// other layers are packed.
class Linear {
 public:
  using ResultsDone =
      std::function<void(const std::vector<at::Tensor>& results, int64_t first, int64_t count)>;

  Linear() = default;
  // weight [out, in]; bias [out] or undefined. `kept`: the form of the weights, and what a call
  // outside of every ScopedLinearNumerics computes.
  Linear(const at::Tensor& weight, const at::Tensor& bias, LinearNumerics kept,
         bool tolerant = false);
  // The same, read as it is packed; not with exact numerics.
  Linear(const WeightRows& weight, const at::Tensor& bias, LinearNumerics kept, bool tolerant);

  // Of `in` numbers a row, whether int8 is worth it and fits: short rows cost as much to round as
  // they save, and the sums of very long ones would overflow.
  static bool FitsInt8(int64_t in) { return in >= 64 && in <= kernels::kMostInt8K; }

  // Takes `name`.weight and, with `with_bias`, `name`.bias.
  static Linear Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                     bool with_bias = true);
  // A layer that bears int8: few bits in its rows and weights cost the result little.
  static Linear TakeTolerant(const LoadOptions& from, const std::string& name, int64_t in,
                             int64_t out);
  // time_embedder and the like: float32 whatever the model's dtype is.
  static Linear TakeFloat(const LoadOptions& from, const std::string& name, int64_t in,
                          int64_t out);

  // Where the bytes of forms that calls make are added (LoadOptions::made_bytes).
  void CountMadeBytes(std::atomic<int64_t>* bytes) { made_bytes_ = bytes; }

  bool defined() const { return weight_.defined() || panels_ != nullptr || int8_ != nullptr; }
  at::ScalarType dtype() const { return dtype_; }
  // `parts`: sizes along the first axis of x, which is dense then. ATen's product does not promise
  // a row its bits in any company; with exact numerics each part has a product of its own, as it
  // would without the others. None: x is one part.
  at::Tensor operator()(const LinearInput& x, Activation activation = Activation::kNone,
                        at::IntArrayRef parts = {}) const;
  // What each layer gives for the same x, of whose rows our own product packs one copy for all.
  // `done` hears of rows of all results that are complete (kernels::RowsDone), and may change them.
  static std::vector<at::Tensor> RunAll(const std::vector<const Linear*>& layers,
                                        const LinearInput& x, at::IntArrayRef parts = {},
                                        const ResultsDone& done = {});
  // hidden += gate * (x W^T + b), in float32 to the end; not with exact numerics. hidden [B, S,
  // out] float32, dense; x [B, S, in]; gate [B, 1 or S, out] float32 with dense rows, or undefined:
  // ones. With an `index`, int32 [B, 1 or S], the gates are [U, 1, out], each once.
  void AddTo(const at::Tensor& hidden, const LinearInput& x, const at::Tensor& gate,
             const at::Tensor& index = {}) const;

 private:
  using SharedPanels = std::shared_ptr<const kernels::WeightPanels>;

  // Without its weights.
  Linear(const at::Tensor& bias, at::ScalarType dtype, int64_t in, LinearNumerics kept,
         bool tolerant);

  SharedPanels PanelsNow() const;
  kernels::GemmCall CallOn(const kernels::WeightPanels& panels, const LinearInput& in) const;
  at::Tensor RunExact(const at::Tensor& x, Activation activation, at::IntArrayRef parts) const;
  at::Tensor RunPart(const at::Tensor& x, const at::Tensor& weight) const;
  kernels::GemmIsa IsaFor(LinearNumerics numerics) const;
  SharedPanels Pack(const at::Tensor& weight, LinearNumerics numerics) const;
  void Keep(SharedPanels panels);
  SharedPanels Panels() const;
  SharedPanels Int8Panels() const;
  at::Tensor Unpacked() const;
  at::Tensor Weight() const;  // [out, in] as it came

  SharedPanels panels_;
  mutable SharedPanels int8_;
  std::atomic<int64_t>* made_bytes_ = nullptr;
  at::Tensor weight_;  // undefined where there are panels; opaque where blocked_
  at::Tensor bias_, float_bias_;
  at::ScalarType dtype_ = at::kFloat;
  LinearNumerics kept_ = LinearNumerics::kExact;
  bool blocked_ = false;
  bool int8_fits_ = false;  // the layer bears it, too
};

// A convolution without gaps or groups, stride 1, zeros around. x [B, C, ..] channels-last in
// memory, two or three axes of space; so is the result. On a CPU the weight is kept in oneDNN's
// blocked layout.
class Convolution {
 public:
  Convolution() = default;
  // weight [out, in, ..kernel], padding per axis of the kernel.
  Convolution(const at::Tensor& weight, const at::Tensor& bias, std::vector<int64_t> padding);

  at::Tensor operator()(const at::Tensor& x) const;
  // The weight that it was made from, in `dtype`.
  at::Tensor Weight(at::ScalarType dtype) const;

 private:
  at::Tensor weight_;  // opaque where packed_
  at::Tensor bias_;
  std::vector<int64_t> padding_, ones_;
  bool packed_ = false;
};

// The torch-free name of a floating dtype. INVALID_ARGUMENT for others than float32, bfloat16,
// float16 and float64.
DType SpecDType(at::ScalarType dtype);

// INVALID_ARGUMENT "`what`: wanted .., came [..]" unless x has `dims` axes, none of them empty.
void RequireDim(const at::Tensor& x, int64_t dims, const std::string& what);
// INVALID_ARGUMENT unless x.size(axis) == size.
void RequireSize(const at::Tensor& x, int64_t axis, int64_t size, const std::string& what);

// oneDNN's bfloat16 product, of weights [out, in] that lie in its blocks; `bias` may be undefined.
at::Tensor BlockLinearWeight(const at::Tensor& weight);
at::Tensor RunBlockedLinear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_LAYERS_H_
