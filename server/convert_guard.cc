#include "server/convert_guard.h"

#include <google/protobuf/util/time_util.h>

#include "server/convert_attention.h"
#include "server/convert_lease.h"
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

ShadowRequest FromProto(const v1::ShadowRequest& request) {
  ShadowRequest shadow;
  shadow.candidate = CoerceAttnBackend(request.candidate(), "candidate");
  if (!request.baseline().empty()) {
    shadow.baseline = CoerceAttnBackend(request.baseline(), "baseline");
  }
  if (request.has_scope()) shadow.scope = FromProto(request.scope(), "scope");
  if (request.share_percent() != 0) shadow.share = request.share_percent() / 100;
  if (request.has_ttl()) shadow.ttl = FromProto(request.ttl(), "ttl");
  if (request.has_parameters()) shadow.parameters = FromProto(request.parameters(), "parameters");
  shadow.reason = CheckedReason(request.reason());
  return shadow;
}

namespace {

v1::ShadowStatistics ToProto(const ShadowStatistics& found) {
  v1::ShadowStatistics message;
  message.set_role(std::string(AttentionRoleName(found.role)));
  message.set_sigma_band(found.sigma_band);
  message.set_baseline(std::string(AttnBackendName(found.baseline)));
  message.set_samples(found.samples);
  message.set_relative_l2_p50(found.relative_l2_p50);
  message.set_relative_l2_p99(found.relative_l2_p99);
  message.set_relative_l2_max(found.relative_l2_max);
  message.set_max_abs(found.max_abs);
  message.set_cosine_distance(found.cosine_distance);
  return message;
}

}  // namespace

v1::ShadowRun ToProto(const ShadowInfo& shadow) {
  v1::ShadowRun message;
  message.set_id(shadow.id);
  message.set_candidate(std::string(AttnBackendName(shadow.request.candidate)));
  if (shadow.request.baseline) {
    message.set_baseline(std::string(AttnBackendName(*shadow.request.baseline)));
  }
  message.set_scope(ToText(shadow.request.scope));
  message.set_share_percent(PercentOf(shadow.request.share));
  if (shadow.remaining) {
    *message.mutable_remaining() = TimeUtil::MillisecondsToDuration(shadow.remaining->count());
  }
  for (const ShadowStatistics& found : shadow.statistics) {
    *message.add_statistics() = ToProto(found);
  }
  message.set_added_seconds(shadow.cost.added_seconds);
  message.set_device_seconds(shadow.cost.device_seconds);
  message.set_budget(shadow.cost.budget);
  message.set_end(shadow.end);
  return message;
}

}  // namespace denoised
