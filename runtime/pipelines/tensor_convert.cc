#include "runtime/pipelines/tensor_convert.h"

#include <cstring>

#include "backends/error.h"
#include "runtime/models/finite.h"

namespace denoised {

at::ScalarType ToScalarType(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return at::kFloat;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kFloat64:
      return at::kDouble;
    case DType::kInt64:
      return at::kLong;
    case DType::kInt32:
      return at::kInt;
    case DType::kUInt8:
      return at::kByte;
  }
  throw Error(StatusCode::kInternal, "unknown dtype");
}

DType FromScalarType(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kDouble:
      return DType::kFloat64;
    case at::kLong:
      return DType::kInt64;
    case at::kInt:
      return DType::kInt32;
    case at::kByte:
      return DType::kUInt8;
    default:
      throw Error(StatusCode::kInternal, "a dtype that has no wire name");
  }
}

at::Tensor ToTensor(const HostTensor& tensor, const std::string& field) {
  CheckHostTensor(tensor, field);
  at::Tensor out = at::empty(tensor.shape, at::TensorOptions(ToScalarType(tensor.dtype)));
  if (!tensor.data.empty()) std::memcpy(out.data_ptr(), tensor.data.data(), tensor.data.size());
  return out;
}

HostTensor FromTensor(const at::Tensor& tensor) {
  const at::Tensor source = tensor.to(at::kCPU).contiguous();
  HostTensor out;
  out.dtype = FromScalarType(source.scalar_type());
  out.shape = source.sizes().vec();
  out.data.assign(static_cast<const char*>(source.data_ptr()), source.nbytes());
  return out;
}

void CheckFinite(const at::Tensor& tensor, const std::string& field) {
  if (!tensor.is_floating_point() || AllFinite(tensor)) return;
  throw Error(StatusCode::kInvalidArgument, field + ": holds NaN or infinity", field, "NON_FINITE");
}

}  // namespace denoised
