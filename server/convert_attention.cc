#include "server/convert_attention.h"

#include <utility>

#include "server/convert_guard.h"
#include "server/convert_values.h"

namespace denoised {
namespace {

AttentionRule RuleFromProto(const v1::AttentionRule& message, const std::string& field) {
  AttentionRule rule;
  if (message.has_steps()) rule.where.steps = FromProto(message.steps());
  if (message.has_layers()) rule.where.layers = FromProto(message.layers());
  if (message.has_sigma()) rule.where.sigma = FromProto(message.sigma());
  if (!message.role().empty()) {
    rule.where.role = LoopRoleFromProto(message.role(), field + ".role");
  }
  rule.backend = CoerceAttnBackend(message.backend(), field + ".backend");
  if (message.has_parameters()) {
    rule.parameters_json = FromProto(message.parameters(), field + ".parameters");
  }
  if (message.has_policy()) rule.mode = FromProto(message.policy(), field + ".policy");
  return rule;
}

v1::ReceiptEntry ToProto(const ReceiptEntry& entry) {
  v1::ReceiptEntry message;
  const Wish& granted = entry.selection.granted;
  message.set_role(std::string(AttentionRoleName(entry.role)));
  message.set_first_step(entry.first_step);
  message.set_last_step(entry.last_step);
  if (entry.layers) *message.mutable_layers() = ToProto(*entry.layers);
  if (entry.asked) message.set_asked(std::string(AttnBackendName(*entry.asked)));
  message.set_ran(std::string(AttnBackendName(entry.ran)));
  message.set_source(std::string(SelectionSourceName(granted.source)));
  if (granted.rule) message.set_rule(*granted.rule);
  message.set_lease_id(granted.lease_id);
  message.set_reason(Reason(entry));
  FillRefusals(entry.selection.refusals, message.mutable_refusals());
  message.set_calls(entry.calls);
  if (entry.seconds) message.set_seconds(*entry.seconds);
  if (!entry.parameters.empty()) *message.mutable_parameters() = JsonToProto(entry.parameters);
  return message;
}

}  // namespace

AttentionOptions FromProto(const v1::AttentionOptions& message) {
  AttentionOptions options;
  if (message.has_backend()) {
    options.backend = CoerceAttnBackend(message.backend(), "attention.backend");
  }
  if (message.has_policy()) options.mode = FromProto(message.policy(), "attention.policy");
  if (message.has_parameters()) {
    options.parameters_json = FromProto(message.parameters(), "attention.parameters");
  }
  for (const v1::AttentionRule& rule : message.schedule()) {
    const std::string index = std::to_string(options.schedule.size());
    options.schedule.push_back(RuleFromProto(rule, "attention.schedule[" + index + "]"));
  }
  return options;
}

SelectionMode FromProto(v1::SelectionPolicy policy, const std::string& field) {
  switch (policy) {
    case v1::SELECTION_POLICY_UNSPECIFIED:
    case v1::PREFER:
      return SelectionMode::kPrefer;
    case v1::STRICT:
      return SelectionMode::kStrict;
    default:
      throw InvalidField(field, "PREFER or STRICT, got number " + std::to_string(policy));
  }
}

v1::SelectionPolicy ToProto(SelectionMode mode) {
  return mode == SelectionMode::kStrict ? v1::STRICT : v1::PREFER;
}

Interval FromProto(const v1::Interval& message) { return {message.first(), message.last()}; }

SigmaRange FromProto(const v1::SigmaRange& message) { return {message.low(), message.high()}; }

AttentionRole LoopRoleFromProto(const std::string& name, const std::string& field) {
  if (const auto role = LoopRoleFromName(name)) return *role;
  throw InvalidField(field, "wanted self or cross, got \"" + name.substr(0, 64) + "\"");
}

v1::Interval ToProto(const Interval& interval) {
  v1::Interval message;
  message.set_first(interval.first);
  message.set_last(interval.last);
  return message;
}

v1::SigmaRange ToProto(const SigmaRange& range) {
  v1::SigmaRange message;
  message.set_low(range.low);
  message.set_high(range.high);
  return message;
}

v1::Receipt ToProto(const Receipt& receipt) {
  v1::Receipt message;
  for (const ReceiptEntry& entry : receipt.entries) *message.add_entries() = ToProto(entry);
  message.set_weights_digest(receipt.weights_digest);
  message.set_model_digest(receipt.model_digest);
  message.set_linear(receipt.linear);
  message.set_device(receipt.device);
  message.set_dtype(receipt.dtype);
  message.set_version(receipt.version);
  message.set_torch_version(receipt.torch_version);
  message.set_fingerprint(receipt.fingerprint);
  for (const std::string& note : receipt.notes) message.add_notes(note);
  message.set_kernels(receipt.kernels);
  return message;
}

v1::Backend ToProto(const BackendInfo& backend) {
  v1::Backend message;
  message.set_name(std::string(AttnBackendName(backend.backend)));
  message.set_summary(backend.summary);
  message.set_automatic(backend.automatic);
  message.set_usable(!backend.why_not.has_value());
  message.set_why_not(backend.why_not.value_or(""));
  for (const BreakerInfo& breaker : backend.breakers) *message.add_breakers() = ToProto(breaker);
  return message;
}

void FillRefusals(const std::vector<Refusal>& refusals,
                  google::protobuf::RepeatedPtrField<v1::Refusal>* out) {
  for (const Refusal& refusal : refusals) {
    v1::Refusal* message = out->Add();
    message->set_source(std::string(SelectionSourceName(refusal.source)));
    message->set_backend(std::string(AttnBackendName(refusal.backend)));
    message->set_reason(refusal.reason);
  }
}

}  // namespace denoised
