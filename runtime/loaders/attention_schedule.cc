#include "runtime/loaders/attention_schedule.h"

#include "backends/error.h"
#include "runtime/loaders/config.h"

namespace denoised {
namespace {

// What `parse` makes of a key's text, or nothing where there is none.
template <typename F>
auto Parsed(const ConfigReader& rule, const std::string& key, const std::string& wanted,
            const F& parse) -> decltype(parse("")) {
  if (!rule.Has(key)) return std::nullopt;
  const std::string text = rule.String(key, "");
  auto value = parse(text);
  if (!value) {
    throw Error(
        StatusCode::kInvalidArgument,
        rule.path() + ": " + key + ": wanted " + wanted + ", got \"" + text.substr(0, 64) + "\"",
        rule.path() + "." + key, "INVALID_FIELD");
  }
  return value;
}

AttentionRule ReadRule(const ConfigReader& given) {
  given.RequireOnly({"steps", "sigma", "layers", "role", "backend", "parameters", "strict"});
  AttentionRule rule;
  rule.where.steps = Parsed(given, "steps", "steps such as \"0-4\"", ParseInterval);
  rule.where.layers = Parsed(given, "layers", "layers such as \"0-3\"", ParseInterval);
  rule.where.sigma = Parsed(given, "sigma", "noise levels such as \"0.2-0.9\"", ParseSigmaRange);
  rule.where.role = Parsed(given, "role", "\"self\" or \"cross\"", LoopRoleFromName);
  rule.backend = CoerceAttnBackend(given.String("backend", ""), given.path() + ".backend");
  if (given.Has("parameters")) rule.parameters_json = given.json().at("parameters").dump();
  if (given.Bool("strict", false)) rule.mode = SelectionMode::kStrict;
  return rule;
}

}  // namespace

std::vector<AttentionRule> ReadSchedule(const nlohmann::json& list, const std::string& where) {
  if (!list.is_array()) {
    throw Error(StatusCode::kInvalidArgument, where + ": wanted a list of rules", where,
                "INVALID_FIELD");
  }
  std::vector<AttentionRule> schedule;
  for (const nlohmann::json& rule : list) {
    const std::string name = where + "[" + std::to_string(schedule.size()) + "]";
    schedule.push_back(ReadRule(ConfigReader(rule, name)));
  }
  return schedule;
}

nlohmann::json WriteSchedule(const std::vector<AttentionRule>& schedule) {
  nlohmann::json list = nlohmann::json::array();
  for (const AttentionRule& rule : schedule) {
    nlohmann::json one = {{"backend", std::string(AttnBackendName(rule.backend))}};
    const PlaceScope& where = rule.where;
    if (where.steps) one["steps"] = ToText(*where.steps);
    if (where.sigma) one["sigma"] = ToText(*where.sigma);
    if (where.layers) one["layers"] = ToText(*where.layers);
    if (where.role) one["role"] = std::string(AttentionRoleName(*where.role));
    if (!rule.parameters_json.empty()) {
      one["parameters"] = nlohmann::json::parse(rule.parameters_json);
    }
    if (rule.mode == SelectionMode::kStrict) one["strict"] = true;
    list.push_back(std::move(one));
  }
  return list;
}

}  // namespace denoised
