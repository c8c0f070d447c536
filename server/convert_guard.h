// What stands around attention, between protobuf and the runtime's plain values.
#ifndef DENOISED_SERVER_CONVERT_GUARD_H_
#define DENOISED_SERVER_CONVERT_GUARD_H_

#include <string>

#include "denoised/v1/admin.pb.h"
#include "runtime/attention_guard.h"
#include "runtime/shadow.h"

namespace denoised {

v1::Breaker ToProto(const BreakerInfo& breaker);

// By `peer`. Throws InvalidField.
DrillRequest FromProto(const v1::DrillRequest& request, const std::string& peer);

ShadowRequest FromProto(const v1::ShadowRequest& request);
v1::ShadowRun ToProto(const ShadowInfo& shadow);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_GUARD_H_
