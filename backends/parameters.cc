#include "backends/parameters.h"

#include <algorithm>
#include <cmath>

#include "backends/error.h"

namespace denoised {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;
constexpr size_t kMaxBytes = size_t{16} << 20;

}  // namespace

json Parameters::ParseObject(std::string_view text) {
  if (text.empty()) return json::object();
  if (text.size() > kMaxBytes) {
    throw InvalidField("attention.parameters", "wanted at most 16 MiB of JSON");
  }
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  std::string problem;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth) problem = "wanted at most 16 levels of nesting";
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      problem = "key \"" + value.get<std::string>().substr(0, 64) + "\" stands twice";
    }
    return problem.empty();
  };
  json object;
  try {
    object = json::parse(text, watch);
  } catch (const json::exception& error) {
    if (problem.empty()) problem = "wanted JSON; got something else";
  }
  if (problem.empty() && !object.is_object()) problem = "wanted a JSON object";
  if (!problem.empty()) throw InvalidField("attention.parameters", problem);
  return object;
}

namespace {

std::string Shown(const json& value) {
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= 64 ? text : text.substr(0, 64) + "...";
}

std::string Short(double x) {
  const std::string text = json(x).dump();
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

}  // namespace

Parameters::Parameters(std::string_view text) : object_(ParseObject(text)) {}

void Parameters::Refuse(const std::string& key, const std::string& message) {
  throw InvalidField("attention.parameters." + key, message);
}

bool Parameters::Has(const std::string& key) const {
  const auto it = object_.find(key);
  return it != object_.end() && !it->is_null();
}

const json& Parameters::Raw(const std::string& key) {
  static const json null;
  read_.insert(key);
  const auto it = object_.find(key);
  return it == object_.end() ? null : *it;
}

int64_t Parameters::Int(const std::string& key, int64_t fallback, int64_t least, int64_t most) {
  const json& value = Raw(key);
  if (value.is_null()) return Keep(key, fallback);
  const bool fits = value.is_number_integer() && value >= least && value <= most;
  if (!fits) {
    Refuse(key, "wanted a whole number from " + std::to_string(least) + " to " +
                    std::to_string(most) + "; got " + Shown(value));
  }
  return Keep(key, value.get<int64_t>());
}

double Parameters::Real(const std::string& key, double fallback, double least, double most) {
  const json& value = Raw(key);
  if (value.is_null()) return Keep(key, fallback);
  const double x = value.is_number() ? value.get<double>() : std::nan("");
  if (!(x >= least && x <= most)) {
    Refuse(key,
           "wanted a number from " + Short(least) + " to " + Short(most) + "; got " + Shown(value));
  }
  return Keep(key, x + 0.0);  // not -0.0
}

bool Parameters::Flag(const std::string& key, bool fallback) {
  const json& value = Raw(key);
  if (value.is_null()) return Keep(key, fallback);
  if (!value.is_boolean()) Refuse(key, "wanted true or false; got " + Shown(value));
  return Keep(key, value.get<bool>());
}

std::string Parameters::Word(const std::string& key, const std::vector<std::string>& allowed) {
  const json& value = Raw(key);
  if (value.is_null()) return Keep(key, allowed.front());
  std::string names;
  for (const std::string& word : allowed) {
    if (value.is_string() && value.get_ref<const std::string&>() == word) return Keep(key, word);
    names += (names.empty() ? "" : ", ") + word;
  }
  Refuse(key, "wanted one of " + names + "; got " + Shown(value));
}

std::vector<int64_t> Parameters::IntList(const std::string& key, int64_t least) {
  const json& value = Raw(key);
  std::vector<int64_t> list;
  if (value.is_null()) return Keep(key, list);
  const auto bad = [&](const json& x) {
    return !x.is_number_integer() || x < least || x > INT32_MAX;
  };
  if (!value.is_array() || std::any_of(value.begin(), value.end(), bad)) {
    Refuse(key, "wanted whole numbers from " + std::to_string(least) + "; got " + Shown(value));
  }
  for (const json& x : value) list.push_back(x.get<int64_t>());
  return Keep(key, list);
}

std::vector<int64_t> Parameters::Ints(const std::string& key, std::vector<int64_t> fallback,
                                      size_t count, int64_t least) {
  if (!Has(key)) {
    Raw(key);
    Settle(key, fallback.empty() ? json() : json(fallback));
    return fallback;
  }
  std::vector<int64_t> list = IntList(key, least);
  if (list.size() != count) {
    Refuse(key, "wanted " + std::to_string(count) + " whole numbers; got " + Shown(object_[key]));
  }
  return list;
}

void Parameters::Settle(const std::string& key, json value) {
  if (value.is_null()) {
    canonical_.erase(key);
  } else {
    canonical_[key] = std::move(value);
  }
}

void Parameters::Finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (!read_.contains(key)) {
      std::string names;
      for (const std::string& name : read_) names += (names.empty() ? "" : ", ") + name;
      Refuse(key.substr(0, 64), "no such parameter; known ones are " + names);
    }
  }
}

}  // namespace denoised
