#include <algorithm>
#include <chrono>
#include <filesystem>

#include "runtime/pipeline.h"
#include "runtime/wan_pipeline.h"

namespace denoised {
namespace {

constexpr size_t kMaxModels = 64;

// Folders with a model_index.json, by name. `repository` may also be one model's folder.
std::vector<std::filesystem::path> FindModels(const std::filesystem::path& repository) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(repository)) {
    throw Error(StatusCode::kNotFound, repository.string() + ": no such folder",
                "model_repository");
  }
  const fs::path whole = fs::weakly_canonical(repository);
  if (fs::exists(whole / "model_index.json")) return {whole};
  std::vector<fs::path> folders;
  for (const fs::directory_entry& entry : fs::directory_iterator(repository)) {
    if (fs::exists(entry.path() / "model_index.json")) folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  if (folders.empty()) {
    throw Error(StatusCode::kNotFound,
                repository.string() + ": no folder in it has a model_index.json",
                "model_repository");
  }
  if (folders.size() > kMaxModels) {
    throw Error(StatusCode::kInvalidArgument, repository.string() + ": more than 64 models",
                "model_repository");
  }
  return folders;
}

// "shapes" where it is there, else the first.
size_t DefaultModel(const std::vector<std::filesystem::path>& folders) {
  const auto found = std::find_if(folders.begin(), folders.end(),
                                  [](const auto& folder) { return folder.filename() == "shapes"; });
  return found == folders.end() ? 0 : static_cast<size_t>(found - folders.begin());
}

}  // namespace

std::vector<std::unique_ptr<Pipeline>> LoadPipelines(const RepositoryOptions& options,
                                                     const SelectionPolicy* policy,
                                                     Observer* observer, Logger* logger) {
  const auto folders = FindModels(options.repository);
  const size_t default_model = DefaultModel(folders);
  std::vector<std::unique_ptr<Pipeline>> pipelines;
  for (size_t i = 0; i < folders.size(); ++i) {
    const auto start = std::chrono::steady_clock::now();
    auto pipeline = WanPipeline::Load(folders[i], options, policy, logger);
    pipeline->set_default(i == default_model);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    observer->OnModelLoaded(pipeline->info().name, seconds);
    logger->Info("model_loaded", {{"model", pipeline->info().name},
                                  {"dtype", pipeline->info().dtype},
                                  {"device", pipeline->info().device},
                                  {"seconds", std::to_string(seconds)}});
    pipelines.push_back(std::move(pipeline));
  }
  return pipelines;
}

}  // namespace denoised
