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
#include <type_traits>
#include <utility>

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

// A whole number that T holds; none is made of a fraction, or by wrapping around.
template <class T>
T Whole(const Json& json) {
  const bool fits = json.is_number_unsigned()  ? std::in_range<T>(json.get<uint64_t>())
                    : json.is_number_integer() ? std::in_range<T>(json.get<int64_t>())
                                               : false;
  if (!fits) throw Unreadable("no such whole number: " + Dump(json));
  return json.get<T>();
}
template <class T>
void ReadWhole(const Json& json, const char* name, T* value) {
  *value = Whole<T>(json.at(name));
}

template <class T>
void Put(Json* json, const char* name, const std::optional<T>& value) {
  if (value) (*json)[name] = *value;
}

template <class T>
void Take(const Json& json, const char* name, std::optional<T>* value) {
  const auto found = json.find(name);
  if (found == json.end()) return;
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
    *value = Whole<T>(*found);
  } else {
    *value = found->template get<T>();
  }
}

// [first, last], whole numbers both, as a T of these.
template <class T>
void TakeEnds(const Json& json, const char* name, std::optional<T>* value) {
  const auto found = json.find(name);
  if (found == json.end()) return;
  *value = T{Whole<int64_t>(found->at(0)), Whole<int64_t>(found->at(1))};
}

// The enumerator whose name (by `name_of`) is `text`, of those counted from 0 to `last`.
template <class Enum, class NameOf>
Enum FromName(const std::string& text, Enum last, const NameOf& name_of) {
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    if (name_of(static_cast<Enum>(i)) == text) return static_cast<Enum>(i);
  }
  throw Unreadable("no such name: " + text);
}

// Times in microseconds: some lifetimes at most, so that what clocks count in nanoseconds is never
// too large, nor is a difference of two.
inline std::chrono::microseconds ReadMicros(const Json& json) {
  constexpr int64_t kMost = 4'000'000'000'000'000;
  const auto micros = Whole<int64_t>(json);
  if (micros < -kMost || micros > kMost) throw Unreadable("no such time");
  return std::chrono::microseconds(micros);
}

// Moments in microseconds since 1970.
inline int64_t ToMicros(std::chrono::system_clock::time_point moment) {
  return std::chrono::duration_cast<std::chrono::microseconds>(moment.time_since_epoch()).count();
}
inline std::chrono::system_clock::time_point ReadMoment(const Json& json) {
  return std::chrono::system_clock::time_point(ReadMicros(json));
}

}  // namespace denoised::stored

#endif  // DENOISED_RUNTIME_STORE_JSON_FIELDS_H_
