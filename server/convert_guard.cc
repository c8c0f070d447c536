#include "server/convert_guard.h"

#include <google/protobuf/util/time_util.h>

#include "server/convert_attention.h"
#include "server/convert_values.h"

namespace denoised {
namespace {

using google::protobuf::util::TimeUtil;

Fault FaultOf(const std::string& name) {
  if (const auto fault = FaultFromName(name)) return *fault;
  throw InvalidField("fault", "wanted throw, stall or nan, got \"" + name.substr(0, 64) + "\"");
}

}  // namespace

v1::Breaker ToProto(const BreakerInfo& breaker) {
  v1::Breaker message;
  message.set_model(breaker.model);
  message.set_shape(breaker.shape);
  message.set_state(std::string(BreakerStateName(breaker.state)));
  *message.mutable_remaining() = TimeUtil::MillisecondsToDuration(breaker.remaining.count());
  message.set_failures(breaker.failures);
  message.set_last_error(breaker.last_error);
  return message;
}

DrillRequest FromProto(const v1::DrillRequest& request, const std::string& peer) {
  DrillRequest drill;
  drill.backend = CoerceAttnBackend(request.backend(), "backend");
  drill.fault = FaultOf(request.fault());
  if (!request.has_ttl()) throw InvalidField("ttl", "a drill has an end");
  drill.ttl = FromProto(request.ttl(), "ttl");
  drill.reason = CheckedReason(request.reason());
  drill.by = peer;
  return drill;
}

}  // namespace denoised
