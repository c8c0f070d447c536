// Values that many messages carry: tensors, JSON objects, times. As convert.h has it.
#ifndef DENOISED_SERVER_CONVERT_VALUES_H_
#define DENOISED_SERVER_CONVERT_VALUES_H_

#include <google/protobuf/duration.pb.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/timestamp.pb.h>

#include <chrono>
#include <optional>
#include <string>

#include "denoised/v1/types.pb.h"
#include "runtime/job.h"

namespace denoised {

// `field` names it in errors. Consumed, so that its bytes are not copied.
HostTensor FromProto(v1::Tensor&& message, const std::string& field);
v1::Tensor ToProto(HostTensor&& tensor);

// A backend's parameters as JSON; throws where they are too deep or too long.
std::string FromProto(const google::protobuf::Struct& parameters, const std::string& field);
// Of a JSON object that the backends wrote, or that passed the above.
google::protobuf::Struct JsonToProto(const std::string& json);

// An operator's reason for a change, `reason` in errors: at most 256 bytes.
std::string CheckedReason(const std::string& reason);

// Throws where the duration is malformed, or not above 0 and at most ten years.
std::chrono::milliseconds FromProto(const google::protobuf::Duration& duration,
                                    const std::string& field);
google::protobuf::Duration DurationToProto(double seconds);  // below 0 is 0
google::protobuf::Timestamp TimeToProto(std::chrono::system_clock::time_point time);

// Moment of a call's deadline on the steady clock; empty where the call has none.
std::optional<std::chrono::steady_clock::time_point> SteadyDeadline(
    std::chrono::system_clock::time_point deadline);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_VALUES_H_
