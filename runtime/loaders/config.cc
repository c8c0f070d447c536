#include "runtime/loaders/config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "backends/error.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

// Values in error messages are cut: a hostile file must not fill the log.
constexpr size_t kMaxShown = 200;
constexpr size_t kMaxValues = 8'000'000;

std::string Show(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

Error Bad(const std::string& what, const std::string& message) {
  return Error(StatusCode::kInvalidArgument, what + ": " + message, what);
}

// Builds the document while refusing what nlohmann's own reader lets pass: duplicate keys (it keeps
// the last one silently) and nesting of any depth.
class StrictBuilder : public nlohmann::json_sax<Json> {
 public:
  StrictBuilder(const std::string& what, int max_depth) : what_(what), max_depth_(max_depth) {}

  Json TakeRoot() { return std::move(root_); }

  bool null() override { return Scalar(nullptr); }
  bool boolean(bool value) override { return Scalar(value); }
  bool number_integer(number_integer_t value) override { return Scalar(value); }
  bool number_unsigned(number_unsigned_t value) override { return Scalar(value); }
  bool number_float(number_float_t value, const string_t&) override { return Scalar(value); }
  bool string(string_t& value) override { return Scalar(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return Push(Json::object()); }
  bool start_array(size_t) override { return Push(Json::array()); }
  bool end_object() override { return Pop(); }
  bool end_array() override { return Pop(); }

  bool key(string_t& name) override {
    if (stack_.back()->contains(name)) throw Bad(what_, "key " + Show(name) + " comes twice");
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& why) override {
    throw Bad(what_, "not valid JSON at byte " + std::to_string(position) + ": " +
                         std::string(why.what()).substr(0, kMaxShown));
  }

 private:
  Json* Place(Json value) {
    // "[[],[],..." costs twenty times its length in memory.
    if (++values_ > kMaxValues) {
      throw Bad(what_, "more than " + std::to_string(kMaxValues) + " values");
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[std::move(key_)] = std::move(value));
  }

  bool Scalar(Json value) {
    Place(std::move(value));
    return true;
  }

  bool Push(Json empty) {
    if (static_cast<int>(stack_.size()) >= max_depth_) {
      throw Bad(what_, "nested deeper than " + std::to_string(max_depth_));
    }
    stack_.push_back(Place(std::move(empty)));
    return true;
  }

  bool Pop() {
    stack_.pop_back();
    return true;
  }

  const std::string& what_;
  const int max_depth_;
  Json root_;
  std::vector<Json*> stack_;  // the open containers; parents outlive the pointers to children
  std::string key_;
  size_t values_ = 0;
};

std::string TypeError(const std::string& key, const char* wanted, const Json& came) {
  return key + ": wanted " + wanted + ", came " + Show(came);
}

int64_t ToInt(const std::string& path, const std::string& key, const Json& value) {
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
  if (!fits) throw Bad(path, TypeError(key, "an integer", value));
  return value.get<int64_t>();
}

double ToDouble(const std::string& path, const std::string& key, const Json& value) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    throw Bad(path, TypeError(key, "a finite number", value));
  }
  return value.get<double>();
}

bool ToBool(const std::string& path, const std::string& key, const Json& value) {
  if (!value.is_boolean()) throw Bad(path, TypeError(key, "true or false", value));
  return value.get<bool>();
}

template <typename T>
std::vector<T> ToList(const std::string& path, const std::string& key, const Json& value,
                      T (*convert)(const std::string&, const std::string&, const Json&)) {
  if (!value.is_array()) throw Bad(path, TypeError(key, "a list", value));
  std::vector<T> list;
  for (const Json& item : value) list.push_back(convert(path, key, item));
  return list;
}

// Letters to change, add or leave out, counted up to a whole word.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t corner = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t change = corner + (a[i] == b[j] ? 0 : 1);
      corner = std::exchange(row[j + 1], std::min({change, row[j] + 1, row[j + 1] + 1}));
    }
  }
  return row.back();
}

// The known word that `key` is a slip of; "" where none is near.
std::string Nearest(const std::string& key, const std::vector<std::string>& known) {
  std::string nearest;
  size_t best = 4;
  if (key.size() > kMaxShown) return nearest;
  for (const std::string& name : known) {
    const size_t distance = Distance(key, name);
    if (distance < std::min(best, name.size())) nearest = name;
    best = std::min(best, distance);
  }
  return nearest;
}

}  // namespace

Json ParseJsonStrict(std::string_view text, const std::string& what, int max_depth) {
  // RFC 8259 forbids a byte order mark in transmitted JSON; nlohmann would skip it.
  if (text.substr(0, 3) == "\xEF\xBB\xBF") throw Bad(what, "begins with a byte order mark");
  // nlohmann takes a NUL for the end of the text and would not look at what follows.
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) {
    throw Bad(what, "not valid JSON at byte " + std::to_string(nul) + ": NUL");
  }
  StrictBuilder builder(what, max_depth);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.TakeRoot();
}

Json ReadJsonFile(const ModelFolder& folder, const std::string& name, size_t max_bytes) {
  return ParseJsonStrict(folder.Read(name, max_bytes), folder.PathOf(name));
}

ConfigReader ConfigReader::FromFile(const ModelFolder& folder, const std::string& name) {
  return ConfigReader(ReadJsonFile(folder, name), folder.PathOf(name));
}

ConfigReader::ConfigReader(Json object, std::string path)
    : object_(std::move(object)), path_(std::move(path)) {
  if (!object_.is_object()) throw Bad(path_, "wanted a JSON object, came " + Show(object_));
}

bool ConfigReader::Has(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

int64_t ConfigReader::Int(const std::string& key, int64_t fallback, int64_t min,
                          int64_t max) const {
  const int64_t value = Has(key) ? ToInt(path_, key, object_.at(key)) : fallback;
  if (value < min || value > max) {
    throw Bad(path_, key + ": wanted " + std::to_string(min) + " to " + std::to_string(max) +
                         ", came " + std::to_string(value));
  }
  return value;
}

double ConfigReader::Double(const std::string& key, double fallback) const {
  return Has(key) ? ToDouble(path_, key, object_.at(key)) : fallback;
}

bool ConfigReader::Bool(const std::string& key, bool fallback) const {
  return Has(key) ? ToBool(path_, key, object_.at(key)) : fallback;
}

std::string ConfigReader::String(const std::string& key, const std::string& fallback) const {
  if (!Has(key)) return fallback;
  const Json& value = object_.at(key);
  if (!value.is_string()) throw Bad(path_, TypeError(key, "a string", value));
  return value.get<std::string>();
}

std::vector<int64_t> ConfigReader::Ints(const std::string& key,
                                        const std::vector<int64_t>& fallback) const {
  return Has(key) ? ToList<int64_t>(path_, key, object_.at(key), ToInt) : fallback;
}

std::vector<double> ConfigReader::Doubles(const std::string& key,
                                          const std::vector<double>& fallback) const {
  return Has(key) ? ToList<double>(path_, key, object_.at(key), ToDouble) : fallback;
}

std::vector<bool> ConfigReader::Bools(const std::string& key,
                                      const std::vector<bool>& fallback) const {
  return Has(key) ? ToList<bool>(path_, key, object_.at(key), ToBool) : fallback;
}

void ConfigReader::RequireOneOf(const std::string& key, const std::vector<Json>& allowed) const {
  if (!Has(key)) return;
  const Json& value = object_.at(key);
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
  throw Bad(path_,
            key + ": " + Show(value) + " is not supported; supported: " + Show(Json(allowed)));
}

void ConfigReader::RequireOnly(const std::vector<std::string>& known) const {
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    std::string all;
    for (const std::string& name : known) all += (all.empty() ? "" : ", ") + name;
    const std::string nearest = Nearest(key, known);
    const std::string guess = nearest.empty() ? "" : " (did you mean \"" + nearest + "\"?)";
    throw Bad(path_, "key " + Show(key) + " is not known" + guess + "; known: " + all);
  }
}

}  // namespace denoised
