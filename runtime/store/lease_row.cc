#include "runtime/store/lease_row.h"

#include <chrono>
#include <utility>

#include "runtime/store/json_fields.h"
#include "runtime/store/moment_row.h"

namespace denoised {
namespace {

using std::chrono::microseconds;
using stored::Json;

}  // namespace

namespace stored {
namespace {

Json WriteScope(const LeaseScope& scope) {
  Json json = Json::object();
  Put(&json, "job", scope.job);
  Put(&json, "tenant", scope.tenant);
  Put(&json, "model", scope.model);
  Put(&json, "share", scope.share);
  if (scope.where.role) json["role"] = AttentionRoleName(*scope.where.role);
  const PlaceScope& where = scope.where;
  if (where.layers) json["layers"] = {where.layers->first, where.layers->last};
  if (where.steps) json["steps"] = {where.steps->first, where.steps->last};
  if (where.sigma) json["sigma"] = {where.sigma->low, where.sigma->high};
  return json;
}

LeaseScope ReadScope(const Json& json) {
  LeaseScope scope;
  Take(json, "job", &scope.job);
  Take(json, "tenant", &scope.tenant);
  Take(json, "model", &scope.model);
  Take(json, "share", &scope.share);
  std::optional<std::string> role;
  Take(json, "role", &role);
  if (role) scope.where.role = FromName(*role, AttentionRole::kVae, AttentionRoleName);
  TakeEnds(json, "layers", &scope.where.layers);
  TakeEnds(json, "steps", &scope.where.steps);
  if (const auto sigma = json.find("sigma"); sigma != json.end()) {
    scope.where.sigma = {sigma->at(0).get<double>(), sigma->at(1).get<double>()};
  }
  return scope;
}

Json WriteBudget(const Budget& budget) {
  return {{"metric", ErrorMetricName(budget.metric)},
          {"statistic", StatisticName(budget.statistic)},
          {"limit", budget.limit},
          {"samples", budget.samples}};
}

Budget ReadBudget(const Json& json) {
  return {
      FromName(json.at("metric").get<std::string>(), ErrorMetric::kCosineDistance, ErrorMetricName),
      FromName(json.at("statistic").get<std::string>(), Statistic::kMax, StatisticName),
      json.at("limit").get<double>(), Whole<int64_t>(json.at("samples"))};
}

}  // namespace

Json WriteLease(const Lease& lease) {
  Json json = {{"id", lease.id},
               {"backend", AttnBackendName(lease.backend)},
               {"parameters", lease.parameters},
               {"scope", WriteScope(lease.scope)},
               {"strict", lease.mode == SelectionMode::kStrict},
               {"reason", lease.reason},
               {"holder", lease.holder},
               {"held", lease.held},
               {"created_at", ToMicros(lease.created_at)},
               {"sequence", lease.sequence}};
  if (lease.budget) json["budget"] = WriteBudget(*lease.budget);
  return json;
}

Lease ReadLease(const Json& json) {
  Lease lease;
  json.at("id").get_to(lease.id);
  lease.backend =
      FromName(json.at("backend").get<std::string>(), AttnBackend::kNoAttention, AttnBackendName);
  json.at("parameters").get_to(lease.parameters);
  lease.scope = ReadScope(json.at("scope"));
  lease.mode = json.at("strict").get<bool>() ? SelectionMode::kStrict : SelectionMode::kPrefer;
  json.at("reason").get_to(lease.reason);
  json.at("holder").get_to(lease.holder);
  json.at("held").get_to(lease.held);
  lease.created_at = ReadMoment(json.at("created_at"));
  ReadWhole(json, "sequence", &lease.sequence);
  if (const auto budget = json.find("budget"); budget != json.end()) {
    lease.budget = ReadBudget(*budget);
  }
  return lease;
}

}  // namespace stored

std::string WriteLeaseRow(const Lease& lease, const ClockReading& now) {
  Json json = stored::WriteLease(lease);
  if (lease.ends_at) json["end"] = stored::WriteEnd(*lease.ends_at, now);
  return stored::Dump(json);
}

LeaseRow ReadLeaseRow(const std::string& text, const ClockReading& now) {
  return stored::Parse(text, [&](const Json& json) {
    LeaseRow row{stored::ReadLease(json)};
    const auto end = json.find("end");
    if (end == json.end()) return row;
    const microseconds left = stored::ReadLeft(*end, now);
    row.over = left <= microseconds::zero();
    if (!row.over) row.lease.ends_at = now.steady + left;
    return row;
  });
}

}  // namespace denoised
