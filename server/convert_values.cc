#include "server/convert_values.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <array>
#include <utility>

namespace denoised {
namespace {

using google::protobuf::util::TimeUtil;
using std::chrono::duration_cast;
using std::chrono::milliseconds;

constexpr int kMaxParameterDepth = 16;
constexpr size_t kMaxParameterBytes = 64 << 10;

DType DTypeFromProto(const std::string& name, const std::string& field) {
  constexpr std::array kAll = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64,
                               DType::kInt64,   DType::kInt32,    DType::kUInt8};
  std::string names;
  for (DType dtype : kAll) {
    if (DTypeName(dtype) == name) return dtype;
    names += (names.empty() ? "" : ", ") + std::string(DTypeName(dtype));
  }
  throw InvalidField(field + ".dtype",
                     "unknown dtype '" + name.substr(0, 64) + "'; one of " + names);
}

int DepthOf(const google::protobuf::Value& value);

int DepthOf(const google::protobuf::Struct& fields) {
  int deepest = 0;
  for (const auto& [key, value] : fields.fields()) deepest = std::max(deepest, DepthOf(value));
  return 1 + deepest;
}

int DepthOf(const google::protobuf::Value& value) {
  if (value.has_struct_value()) return DepthOf(value.struct_value());
  if (!value.has_list_value()) return 0;
  int deepest = 0;
  for (const auto& item : value.list_value().values()) deepest = std::max(deepest, DepthOf(item));
  return 1 + deepest;
}

}  // namespace

HostTensor FromProto(v1::Tensor&& message, const std::string& field) {
  HostTensor tensor;
  tensor.dtype = DTypeFromProto(message.dtype(), field);
  tensor.shape.assign(message.shape().begin(), message.shape().end());
  tensor.data = std::move(*message.mutable_data());
  CheckHostTensor(tensor, field);
  return tensor;
}

v1::Tensor ToProto(HostTensor&& tensor) {
  v1::Tensor message;
  message.set_dtype(std::string(DTypeName(tensor.dtype)));
  message.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  message.set_data(std::move(tensor.data));
  return message;
}

std::string FromProto(const google::protobuf::Struct& parameters, const std::string& field) {
  if (DepthOf(parameters) > kMaxParameterDepth) {
    throw InvalidField(field, "at most 16 levels deep");
  }
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(parameters, &json).ok()) {
    throw InvalidField(field, "every value must be finite and set");
  }
  if (json.size() > kMaxParameterBytes) {
    throw InvalidField(field, "at most 65536 bytes as JSON, got " + std::to_string(json.size()));
  }
  return json;
}

google::protobuf::Struct JsonToProto(const std::string& json) {
  google::protobuf::Struct parameters;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &parameters);
  if (!status.ok()) throw Error(StatusCode::kInternal, "parameters are not JSON: " + json);
  return parameters;
}

std::string CheckedReason(const std::string& reason) {
  constexpr size_t kMost = 256;
  if (reason.size() <= kMost) return reason;
  throw InvalidField("reason", "at most 256 bytes, got " + std::to_string(reason.size()));
}

milliseconds FromProto(const google::protobuf::Duration& duration, const std::string& field) {
  constexpr int64_t kTenYears = int64_t{10} * 366 * 24 * 3600;
  const bool fits = duration.seconds() >= 0 && duration.seconds() <= kTenYears &&
                    duration.nanos() >= 0 && duration.nanos() < 1000000000;
  if (!fits || (duration.seconds() == 0 && duration.nanos() == 0)) {
    throw InvalidField(field, "longer than 0 and at most ten years, got " +
                                  std::to_string(duration.seconds()) + " s and " +
                                  std::to_string(duration.nanos()) + " ns");
  }
  // Rounded up: a wish for a nanosecond is not a wish for nothing.
  return milliseconds(duration.seconds() * 1000 + (duration.nanos() + 999999) / 1000000);
}

google::protobuf::Duration DurationToProto(double seconds) {
  return TimeUtil::NanosecondsToDuration(static_cast<int64_t>(std::max(0.0, seconds) * 1e9));
}

google::protobuf::Timestamp TimeToProto(std::chrono::system_clock::time_point time) {
  return TimeUtil::MillisecondsToTimestamp(
      duration_cast<milliseconds>(time.time_since_epoch()).count());
}

std::optional<std::chrono::steady_clock::time_point> SteadyDeadline(
    std::chrono::system_clock::time_point deadline) {
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  const auto left = deadline - std::chrono::system_clock::now();
  // A client may send an absurdly far deadline; beyond this it is none.
  if (left > std::chrono::hours(24 * 365)) return std::nullopt;
  return std::chrono::steady_clock::now() +
         duration_cast<std::chrono::steady_clock::duration>(left);
}

}  // namespace denoised
