// What a cost model keeps over a restart.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/engine/cost_model.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kMaxText = 4096;  // bytes of a name
constexpr int64_t kMaxRows = 1 << 20;
constexpr double kMaxSeconds = 1e6;
constexpr int64_t kRemembered = 8;  // times of a number of rows: new ones soon outweigh them

struct Timed {
  int64_t rows, count;
  double seconds;
};

std::optional<std::string> Text(const Json& unit, const char* name) {
  const auto found = unit.find(name);
  if (found == unit.end() || !found->is_string()) return std::nullopt;
  auto text = found->get<std::string>();
  return text.size() <= kMaxText ? std::optional(std::move(text)) : std::nullopt;
}

std::optional<double> Size(const Json& unit, const char* name) {
  const auto found = unit.find(name);
  if (found == unit.end() || !found->is_number()) return std::nullopt;
  const double size = found->get<double>();
  return std::isfinite(size) && size >= 0 ? std::optional(size) : std::nullopt;
}

std::optional<UnitKey> KeyFrom(const Json& unit) {
  if (!unit.is_object()) return std::nullopt;
  const auto model = Text(unit, "model"), kind = Text(unit, "kind");
  const auto group = Text(unit, "group"), backend = Text(unit, "backend");
  const auto multiply_adds = Size(unit, "multiply_adds"), tokens = Size(unit, "tokens");
  if (!model || !kind || !group || !backend || !multiply_adds || !tokens) return std::nullopt;
  return UnitKey{*model, *kind, *group, *backend, *multiply_adds, *tokens};
}

std::optional<Timed> TimedFrom(const Json& time) {
  if (!time.is_array() || time.size() != 3) return std::nullopt;
  if (!time[0].is_number_integer() || !time[1].is_number() || !time[2].is_number_integer()) {
    return std::nullopt;
  }
  const Timed timed = {.rows = time[0].get<int64_t>(),
                       .count = time[2].get<int64_t>(),
                       .seconds = time[1].get<double>()};
  const bool sane = timed.rows >= 1 && timed.rows <= kMaxRows && timed.count >= 1 &&
                    timed.seconds > 0 && timed.seconds <= kMaxSeconds;
  return sane ? std::optional(timed) : std::nullopt;
}

// Empty where one of them is not what Save writes.
std::vector<Timed> TimesFrom(const Json& unit) {
  std::vector<Timed> times;
  const auto found = unit.find("times");
  if (found == unit.end() || !found->is_array()) return times;
  for (const Json& time : *found) {
    const auto timed = TimedFrom(time);
    if (!timed) return {};
    times.push_back(*timed);
  }
  return times;
}

}  // namespace

std::string CostModel::Save() const {
  const std::lock_guard lock(mutex_);
  std::vector<const Entry*> oldest_first;
  for (const auto& [name, entry] : entries_) oldest_first.push_back(&entry);
  std::sort(oldest_first.begin(), oldest_first.end(),
            [](const Entry* a, const Entry* b) { return a->used < b->used; });
  Json units = Json::array();
  for (const Entry* entry : oldest_first) {
    Json times = Json::array();
    for (const auto& [rows, recent] : entry->times.by_rows()) {
      times.push_back({rows, recent.typical(), recent.count()});
    }
    const UnitKey& key = entry->key;
    units.push_back({{"model", key.model},
                     {"kind", key.kind},
                     {"group", key.group},
                     {"backend", key.backend},
                     {"multiply_adds", key.multiply_adds},
                     {"tokens", key.tokens},
                     {"times", std::move(times)}});
  }
  const Json all = {{"version", kVersion}, {"units", std::move(units)}};
  // Names that are not UTF-8 are no reason to lose the rest.
  return all.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<std::string> CostModel::Load(const std::string& text) {
  const Json all = Json::parse(text, nullptr, false);
  if (all.is_discarded() || !all.is_object()) return "measured unit times: not a JSON object";
  const auto version = all.find("version"), units = all.find("units");
  if (version == all.end() || *version != kVersion) {
    return "measured unit times: version is not " + std::to_string(kVersion);
  }
  if (units == all.end() || !units->is_array()) return "measured unit times: units is not a list";
  size_t ignored = 0;
  const std::lock_guard lock(mutex_);
  for (const Json& unit : *units) {
    const auto key = KeyFrom(unit);
    const std::vector<Timed> times = key ? TimesFrom(unit) : std::vector<Timed>();
    ignored += times.empty() ? 1 : 0;
    if (times.empty()) continue;
    Entry& entry = EntryOf(*key);
    for (const Timed& timed : times) {
      for (int64_t i = 0; i < std::min(timed.count, kRemembered); ++i) {
        Add(&entry, timed.rows, timed.seconds);
      }
    }
    ForgetOldest();
  }
  if (ignored == 0) return std::nullopt;
  return "measured unit times: units: " + std::to_string(ignored) + " of " +
         std::to_string(units->size()) + " are not what was written";
}

}  // namespace denoised
