// Words for reading and writing the ledger's JSON: optional fields, enums by their names, times.
// Everything that does not fit is DATA_LOSS.
#ifndef DENOISED_RUNTIME_STORE_JSON_FIELDS_H_
#define DENOISED_RUNTIME_STORE_JSON_FIELDS_H_

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "backends/error.h"

namespace denoised::stored {

using Json = nlohmann::json;

inline Error Unreadable(const std::string& what) {
  return Error(StatusCode::kDataLoss, "a stored row cannot be read: " + what, "", "STORED_ROW");
}

// Text that is not UTF-8 loses the bytes that are not: only words of the system can be like that.
inline std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Runs `read` over the parsed text; whatever does not fit becomes DATA_LOSS.
template <class Read>
auto Parse(const std::string& text, const Read& read) {
  try {
    return read(Json::parse(text));
  } catch (const Json::exception& error) {
    throw Unreadable(error.what());
  }
}

template <class T>
void Put(Json* json, const char* name, const std::optional<T>& value) {
  if (value) (*json)[name] = *value;
}

template <class T>
void Take(const Json& json, const char* name, std::optional<T>* value) {
  if (const auto found = json.find(name); found != json.end()) *value = found->template get<T>();
}

// The enumerator whose name (by `name_of`) is `text`, of those counted from 0 to `last`.
template <class Enum, class NameOf>
Enum FromName(const std::string& text, Enum last, const NameOf& name_of) {
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    if (name_of(static_cast<Enum>(i)) == text) return static_cast<Enum>(i);
  }
  throw Unreadable("no such name: " + text);
}

// Moments in microseconds since 1970.
inline int64_t ToMicros(std::chrono::system_clock::time_point moment) {
  return std::chrono::duration_cast<std::chrono::microseconds>(moment.time_since_epoch()).count();
}
inline std::chrono::system_clock::time_point FromMicros(int64_t micros) {
  return std::chrono::system_clock::time_point(std::chrono::microseconds(micros));
}

}  // namespace denoised::stored

#endif  // DENOISED_RUNTIME_STORE_JSON_FIELDS_H_
