// Which folders of a model repository hold a model, and under which names requests reach them.
// Looks at folders and links only and reads no file of a model. Torch-free.
//
// A repository is a folder of model folders, one model folder, or what Hugging Face's tools keep:
// HF_HOME, its hub/, one models--org--name, or a snapshot in it
// (huggingface.co/docs/huggingface_hub, "Understand caching").
#ifndef DENOISED_RUNTIME_PIPELINES_MODEL_FOLDERS_H_
#define DENOISED_RUNTIME_PIPELINES_MODEL_FOLDERS_H_

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "backends/error.h"

namespace denoised {

struct FoundModel {
  std::filesystem::path folder;  // has a model_index.json, unless `problem` is set
  std::string name;              // folder name, or "org/name"; printable only without a `problem`
  std::optional<Error> problem;  // why it must not be loaded
};

// Sorted by name; names are unique among those without a problem. NOT_FOUND where nothing there is
// a model, INVALID_ARGUMENT for more than 64.
std::vector<FoundModel> FindModels(const std::filesystem::path& repository);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_MODEL_FOLDERS_H_
