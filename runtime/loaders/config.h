// Typed reading of a component's config.json. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_CONFIG_H_
#define DENOISED_RUNTIME_LOADERS_CONFIG_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/loaders/model_folder.h"

namespace denoised {

// Parses a JSON file strictly: UTF-8, no duplicate keys, depth at most 16, size at most
// `max_bytes`. Throws INVALID_ARGUMENT naming the file and the place (NOT_FOUND where it is
// absent).
nlohmann::json ReadJsonFile(const ModelFolder& folder, const std::string& name,
                            size_t max_bytes = 64 << 20);
nlohmann::json ParseJsonStrict(std::string_view text, const std::string& what, int max_depth = 16);

// One config file with its path, so that every error can say "file: key: wanted, came". An absent
// or null key gives the default, as diffusers does for configs written by older versions.
class ConfigReader {
 public:
  static ConfigReader FromFile(const ModelFolder& folder, const std::string& name);
  ConfigReader(nlohmann::json object, std::string path);

  const std::string& path() const { return path_; }
  const nlohmann::json& json() const { return object_; }
  bool Has(const std::string& key) const;  // present and not null

  int64_t Int(const std::string& key, int64_t fallback, int64_t min, int64_t max) const;
  double Double(const std::string& key, double fallback) const;
  bool Bool(const std::string& key, bool fallback) const;
  std::string String(const std::string& key, const std::string& fallback) const;
  std::vector<int64_t> Ints(const std::string& key, const std::vector<int64_t>& fallback) const;
  std::vector<double> Doubles(const std::string& key, const std::vector<double>& fallback) const;
  std::vector<bool> Bools(const std::string& key, const std::vector<bool>& fallback) const;

  // Throws INVALID_ARGUMENT naming file, key and value unless the key is absent, null or equals one
  // of `allowed`.
  void RequireOneOf(const std::string& key, const std::vector<nlohmann::json>& allowed) const;
  // Throws INVALID_ARGUMENT naming the first key that is not one of `known`, and the nearest of
  // them.
  void RequireOnly(const std::vector<std::string>& known) const;

 private:
  nlohmann::json object_;
  std::string path_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_CONFIG_H_
