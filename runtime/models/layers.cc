#include "runtime/models/layers.h"

#include <sstream>

#include "backends/error.h"

namespace denoised {
namespace {

std::string ShapeText(const at::Tensor& x) {
  std::ostringstream text;
  text << x.sizes();
  return text.str();
}

Linear TakeAs(const LoadOptions& from, at::ScalarType dtype, const std::string& name, int64_t in,
              int64_t out, bool with_bias) {
  Linear linear;
  linear.weight = from.weights->Take(name + ".weight", {out, in}, dtype, from.device);
  if (with_bias) linear.bias = from.weights->Take(name + ".bias", {out}, dtype, from.device);
  return linear;
}

}  // namespace

Linear Linear::Take(const LoadOptions& from, const std::string& name, int64_t in, int64_t out,
                    bool with_bias) {
  return TakeAs(from, from.dtype, name, in, out, with_bias);
}

Linear Linear::TakeFloat(const LoadOptions& from, const std::string& name, int64_t in,
                         int64_t out) {
  return TakeAs(from, at::kFloat, name, in, out, true);
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
  if (x.defined() && x.dim() == dims) return;
  throw InvalidField(what, "wanted a tensor of " + std::to_string(dims) + " axes, came " +
                               (x.defined() ? ShapeText(x) : std::string("none")));
}

void RequireSize(const at::Tensor& x, int64_t axis, int64_t size, const std::string& what) {
  if (x.size(axis) == size) return;
  throw InvalidField(what, "axis " + std::to_string(axis) + ": wanted " + std::to_string(size) +
                               ", came " + ShapeText(x));
}

}  // namespace denoised
