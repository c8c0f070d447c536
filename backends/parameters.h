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
  // The raw value, null where the key is absent; the caller checks it.
  const nlohmann::json& Raw(const std::string& key);

  void Finish() const;

  // The strict reading of the constructor, for files as well.
  static nlohmann::json ParseObject(std::string_view text);

  [[noreturn]] static void Refuse(const std::string& key, const std::string& message);

 private:
  nlohmann::json object_;
  std::set<std::string> read_;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_PARAMETERS_H_
