// A backend's own parameters, as they come with a request: one JSON object, read strictly.
#ifndef DENOISED_BACKENDS_PARAMETERS_H_
#define DENOISED_BACKENDS_PARAMETERS_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace denoised {

// Every getter throws INVALID_ARGUMENT naming "attention.parameters.<key>" where the value has the
// wrong type or range. Call Finish() last: it refuses keys that nobody read.
//
// What was read is kept as the canonical form: every key with the value that holds, defaults filled
// in. Two texts that mean the same have the same canonical form, and it reads as itself.
class Parameters {
 public:
  // Empty text is an empty object. Refuses what is not an object, duplicate keys, depth over 16.
  explicit Parameters(std::string_view text);

  bool Has(const std::string& key) const;  // present and not null
  int64_t Int(const std::string& key, int64_t fallback, int64_t least, int64_t most);
  double Real(const std::string& key, double fallback, double least, double most);
  bool Flag(const std::string& key, bool fallback);
  std::string Word(const std::string& key,
                   const std::vector<std::string>& allowed);  // first = default
  // `count` whole numbers from `least` up.
  std::vector<int64_t> Ints(const std::string& key, std::vector<int64_t> fallback, size_t count,
                            int64_t least);
  // Any number of them; empty where the key is absent.
  std::vector<int64_t> IntList(const std::string& key, int64_t least);
  // The raw value, null where the key is absent; the caller checks it and, since it stays out of
  // the canonical form, settles what it means.
  const nlohmann::json& Raw(const std::string& key);

  // What the canonical form says for a key whose value as written is not the whole truth; null
  // leaves the key out.
  void Settle(const std::string& key, nlohmann::json value);

  void Finish() const;

  // The canonical form: keys sorted, numbers in one spelling, no blanks.
  std::string Canonical() const { return canonical_.dump(); }

  // The strict reading of the constructor, for files as well.
  static nlohmann::json ParseObject(std::string_view text);

  [[noreturn]] static void Refuse(const std::string& key, const std::string& message);

 private:
  template <typename T>
  T Keep(const std::string& key, T value) {
    Settle(key, value);
    return value;
  }

  nlohmann::json object_;
  nlohmann::json canonical_ = nlohmann::json::object();
  std::set<std::string> read_;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_PARAMETERS_H_
