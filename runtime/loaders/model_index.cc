#include "runtime/loaders/model_index.h"

#include <algorithm>
#include <cctype>
#include <vector>

#include "backends/error.h"
#include "runtime/loaders/config.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

// What each role of a WanPipeline may be. A role that is not listed must be absent.
const std::map<std::string, std::vector<std::string>>& SupportedClasses() {
  static const std::map<std::string, std::vector<std::string>> classes = {
      {"scheduler", {"UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"}},
      {"text_encoder", {"UMT5EncoderModel"}},
      {"tokenizer",
       {"T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"}},
      {"transformer", {"WanTransformer3DModel"}},
      {"vae", {"AutoencoderKLWan"}},
  };
  return classes;
}

Error Bad(const std::string& path, const std::string& key, const std::string& message) {
  return Error(StatusCode::kInvalidArgument, path + ": " + key + ": " + message, path);
}

Error Unsupported(const ModelIndex& index, const std::string& key, const std::string& value,
                  const std::string& supported) {
  return Error(
      StatusCode::kUnimplemented,
      index.path + ": " + key + ": " + value + " is not supported; supported: " + supported,
      index.path, "UNSUPPORTED_MODEL");
}

std::string Join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void ReadComponent(const std::string& key, const Json& value, ModelIndex& index) {
  const bool pair = value.size() == 2 && ((value[0].is_string() && value[1].is_string()) ||
                                          (value[0].is_null() && value[1].is_null()));
  if (!pair) throw Bad(index.path, key, "wanted [library, class] or [null, null]");
  // The key becomes a folder name.
  const bool plain =
      !key.empty() && key.size() <= 64 && std::all_of(key.begin(), key.end(), [](unsigned char c) {
        return c == '_' || (c < 0x80 && std::isalnum(c));
      });
  if (!plain) throw Bad(index.path, "component", "a name is not made of letters, digits and _");
  if (value[0].is_null()) return;
  index.components[key] = {value[0].get<std::string>(), value[1].get<std::string>()};
}

void ReadScalar(const ConfigReader& config, const std::string& key, ModelIndex& index) {
  if (!config.Has(key)) return;
  if (key == "boundary_ratio") {
    index.boundary_ratio = config.Double(key, 0);
  } else if (key == "expand_timesteps") {
    index.expand_timesteps = config.Bool(key, false);
  } else if (config.json().at(key) != Json(false)) {
    throw Bad(index.path, key, "is not known to this version");
  }
}

}  // namespace

ModelIndex ReadModelIndex(const ModelFolder& folder) {
  const ConfigReader config = ConfigReader::FromFile(folder, "model_index.json");
  ModelIndex index;
  index.path = config.path();
  index.class_name = config.String("_class_name", "");
  if (index.class_name.empty()) throw Bad(index.path, "_class_name", "is missing");
  for (const auto& [key, value] : config.json().items()) {
    if (key.starts_with('_')) continue;
    if (value.is_array()) {
      ReadComponent(key, value, index);
    } else {
      ReadScalar(config, key, index);
    }
  }
  return index;
}

void CheckSupported(const ModelIndex& index) {
  if (index.class_name != "WanPipeline") {
    throw Unsupported(index, "_class_name", index.class_name, "WanPipeline");
  }
  const auto& roles = SupportedClasses();
  for (const auto& [role, component] : index.components) {
    const auto found = roles.find(role);
    if (found == roles.end()) throw Unsupported(index, role, component.class_name, "[null, null]");
    const auto& classes = found->second;
    if (std::find(classes.begin(), classes.end(), component.class_name) == classes.end()) {
      throw Unsupported(index, role, component.class_name, Join(classes));
    }
  }
  for (const auto& [role, classes] : roles) {
    if (!index.components.contains(role)) {
      throw Unsupported(index, role, "[null, null]", Join(classes));
    }
  }
  if (index.boundary_ratio) {
    throw Unsupported(index, "boundary_ratio", std::to_string(*index.boundary_ratio), "null");
  }
  if (index.expand_timesteps) throw Unsupported(index, "expand_timesteps", "true", "false");
}

}  // namespace denoised
