#include "backends/attention_spec.h"

#include <algorithm>

namespace denoised {

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kFloat64:
      return "float64";
    case DType::kInt64:
      return "int64";
    case DType::kInt32:
      return "int32";
    case DType::kUInt8:
      return "uint8";
  }
  return "unknown";
}

size_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
      return 1;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
  }
  return 0;
}

std::string_view AttentionRoleName(AttentionRole role) {
  switch (role) {
    case AttentionRole::kSelf:
      return "self";
    case AttentionRole::kCross:
      return "cross";
    case AttentionRole::kTextEncoder:
      return "text_encoder";
    case AttentionRole::kVae:
      return "vae";
  }
  return "unknown";
}

bool AttentionSpec::Lists(AttnBackend backend) const {
  return std::ranges::find(supported, backend) != supported.end();
}

}  // namespace denoised
