#include "server/convert_lease.h"

#include <optional>
#include <utility>

#include "server/convert_attention.h"
#include "server/convert_measured.h"
#include "server/convert_values.h"

namespace denoised {
namespace {

// Of a ForceBackendRequest or a HoldBackendRequest, which have the same fields.
template <typename Request>
LeaseRequest LeaseFromProto(const Request& message) {
  LeaseRequest request;
  request.backend = CoerceAttnBackend(message.backend(), "backend");
  if (message.has_ttl()) request.ttl = FromProto(message.ttl(), "ttl");
  if (message.has_parameters()) request.parameters = FromProto(message.parameters(), "parameters");
  if (message.has_scope()) request.scope = FromProto(message.scope(), "scope");
  request.mode = FromProto(message.policy(), "policy");
  if (message.has_budget()) request.budget = FromProto(message.budget(), "budget");
  request.reason = CheckedReason(message.reason());
  if (message.has_expected_generation()) {
    request.expected_generation = message.expected_generation();
  }
  return request;
}

v1::AttentionSpec SpecToProto(const AttentionSpec& spec) {
  v1::AttentionSpec message;
  message.set_num_heads(spec.num_heads);
  message.set_head_size(spec.head_size);
  message.set_dtype(std::string(DTypeName(spec.dtype)));
  message.set_q_len(spec.q_len);
  message.set_kv_len(spec.kv_len);
  for (int64_t size : spec.grid) message.add_grid(size);
  message.set_causal(spec.causal);
  message.set_has_mask(spec.has_mask);
  message.set_has_gate(spec.has_gate);
  for (AttnBackend backend : spec.supported) {
    message.add_supported(std::string(AttnBackendName(backend)));
  }
  return message;
}

v1::WishExplanation WishToProto(const ExplainedWish& explained) {
  v1::WishExplanation message;
  message.set_source(std::string(SelectionSourceName(explained.wish.source)));
  message.set_backend(std::string(AttnBackendName(explained.wish.backend)));
  message.set_lease_id(explained.wish.lease_id);
  if (explained.wish.rule) message.set_rule(*explained.wish.rule);
  message.set_scope(explained.scope);
  message.set_outcome(std::string(WishOutcomeName(explained.outcome)));
  message.set_reason(explained.reason);
  return message;
}

v1::LayerExplanation LayersToProto(const ExplainedLayers& explained) {
  v1::LayerExplanation message;
  *message.mutable_layers() = ToProto(explained.layers);
  if (!explained.selection) {
    message.set_reason(explained.error->message);
    return message;
  }
  const Wish& granted = explained.selection->granted;
  message.set_would_run(std::string(AttnBackendName(granted.backend)));
  message.set_source(std::string(SelectionSourceName(granted.source)));
  message.set_lease_id(granted.lease_id);
  message.set_reason(explained.selection->Reason());
  return message;
}

void FillGranted(const Selection& selection, v1::RoleExplanation* message) {
  const Wish& granted = selection.granted;
  message->set_would_run(std::string(AttnBackendName(granted.backend)));
  message->set_source(std::string(SelectionSourceName(granted.source)));
  message->set_reason(selection.Reason());
  message->set_lease_id(granted.lease_id);
  if (!granted.parameters.empty()) {
    *message->mutable_parameters() = JsonToProto(granted.parameters);
  }
}

}  // namespace

LeaseScope FromProto(const v1::LeaseScope& message, const std::string& field) {
  LeaseScope scope;
  if (message.has_model()) scope.model = message.model();
  if (message.has_tenant()) scope.tenant = message.tenant();
  if (message.has_job_id()) scope.job = message.job_id();
  if (message.has_share_percent()) scope.share = message.share_percent() / 100;
  if (message.has_role()) scope.where.role = LoopRoleFromProto(message.role(), field + ".role");
  if (message.has_layers()) scope.where.layers = FromProto(message.layers());
  if (message.has_steps()) scope.where.steps = FromProto(message.steps());
  if (message.has_sigma()) scope.where.sigma = FromProto(message.sigma());
  return scope;
}

v1::LeaseScope ToProto(const LeaseScope& scope) {
  v1::LeaseScope message;
  const PlaceScope& where = scope.where;
  if (scope.model) message.set_model(*scope.model);
  if (scope.tenant) message.set_tenant(*scope.tenant);
  if (scope.job) message.set_job_id(*scope.job);
  if (scope.share) message.set_share_percent(PercentOf(*scope.share));
  if (where.role) message.set_role(std::string(AttentionRoleName(*where.role)));
  if (where.layers) *message.mutable_layers() = ToProto(*where.layers);
  if (where.steps) *message.mutable_steps() = ToProto(*where.steps);
  if (where.sigma) *message.mutable_sigma() = ToProto(*where.sigma);
  return message;
}

Budget FromProto(const v1::Budget& message, const std::string& field) {
  const auto metric = ErrorMetricFromName(message.metric());
  if (!metric) {
    throw InvalidField(field + ".metric", "wanted relative_l2, max_abs or cosine_distance, got \"" +
                                              message.metric().substr(0, 64) + "\"");
  }
  const auto statistic = StatisticFromName(message.statistic());
  if (!statistic) {
    throw InvalidField(field + ".statistic", "wanted mean, p50, p90, p99 or max, got \"" +
                                                 message.statistic().substr(0, 64) + "\"");
  }
  return {*metric, *statistic, message.limit(), message.samples()};
}

v1::Budget ToProto(const Budget& budget) {
  v1::Budget message;
  message.set_metric(std::string(ErrorMetricName(budget.metric)));
  message.set_statistic(std::string(StatisticName(budget.statistic)));
  message.set_limit(budget.limit);
  message.set_samples(budget.samples);
  return message;
}

LeaseRequest FromProto(const v1::ForceBackendRequest& message) { return LeaseFromProto(message); }
LeaseRequest FromProto(const v1::HoldBackendRequest& message) {
  LeaseRequest request = LeaseFromProto(message);
  request.held = true;
  return request;
}

v1::Lease ToProto(const Lease& lease) {
  v1::Lease message;
  message.set_id(lease.id);
  message.set_backend(std::string(AttnBackendName(lease.backend)));
  message.set_scope(ToText(lease.scope));
  *message.mutable_where() = ToProto(lease.scope);
  message.set_policy(ToProto(lease.mode));
  message.set_reason(lease.reason);
  message.set_holder(lease.holder);
  message.set_held(lease.held);
  message.set_generation(lease.generation);
  *message.mutable_created_at() = TimeToProto(lease.created_at);
  if (lease.budget) *message.mutable_budget() = ToProto(*lease.budget);
  if (lease.ends_at) {
    const std::chrono::duration<double> left = *lease.ends_at - std::chrono::steady_clock::now();
    *message.mutable_remaining() = DurationToProto(left.count());
  }
  if (!lease.parameters.empty()) *message.mutable_parameters() = JsonToProto(lease.parameters);
  return message;
}

ExplainQuery FromProto(const v1::ExplainSelectionRequest& message) {
  ExplainQuery query;
  query.model = message.model();
  if (message.has_height()) query.height = message.height();
  if (message.has_width()) query.width = message.width();
  if (message.has_num_frames()) query.num_frames = message.num_frames();
  query.attention = FromProto(message.attention());
  if (message.has_role()) query.role = LoopRoleFromProto(message.role(), "role");
  if (message.has_layer()) query.layer = message.layer();
  if (message.has_step()) query.step = message.step();
  if (message.has_sigma()) query.sigma = message.sigma();
  if (message.has_tenant()) query.tenant = message.tenant();
  query.job_id = message.job_id();
  if (!message.has_what_if()) return query;
  try {
    query.what_if = FromProto(message.what_if());
  } catch (const Error& error) {
    throw Renamed(error, "", "what_if.");
  }
  return query;
}

v1::RoleExplanation ToProto(const Explanation& explanation) {
  v1::RoleExplanation message;
  message.set_role(std::string(AttentionRoleName(explanation.role)));
  *message.mutable_spec() = SpecToProto(explanation.spec);
  if (explanation.error) {
    message.set_error(explanation.error->message);
  } else {
    FillGranted(explanation.selection, &message);
  }
  FillRefusals(explanation.selection.refusals, message.mutable_refusals());
  for (const Explanation::Candidate& candidate : explanation.candidates) {
    v1::BackendCandidate* row = message.add_candidates();
    row->set_backend(std::string(AttnBackendName(candidate.backend)));
    row->set_listed(candidate.listed);
    row->set_why_not(candidate.why_not.value_or(""));
  }
  for (const ExplainedWish& wish : explanation.wishes) *message.add_wishes() = WishToProto(wish);
  for (const ExplainedLayers& layers : explanation.layers) {
    *message.add_layers() = LayersToProto(layers);
  }
  message.set_what_if(explanation.what_if);
  if (explanation.measured) *message.mutable_measured() = ToProto(*explanation.measured);
  return message;
}

}  // namespace denoised
