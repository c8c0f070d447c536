#include "runtime/pipelines/model_folders.h"

#include <algorithm>
#include <set>
#include <utility>

#include "runtime/loaders/loose_file.h"
#include "runtime/loaders/visible_text.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxModels = 64;
constexpr size_t kMaxNameBytes = 256;
constexpr char kIndex[] = "model_index.json";
constexpr std::string_view kHubPrefix = "models--";

// A link that leads nowhere counts: a half download is a model that cannot be loaded, not none.
bool HasIndex(const fs::path& folder) {
  std::error_code unreadable;  // lost+found and its like are no models
  const fs::file_status status = fs::symlink_status(folder / kIndex, unreadable);
  return !unreadable && fs::exists(status);
}

bool IsFolder(const fs::path& path) {
  std::error_code unreadable;
  return fs::is_directory(path, unreadable) && !unreadable;
}

std::vector<fs::path> FoldersIn(const fs::path& folder) {
  std::vector<fs::path> folders;
  std::error_code unreadable;
  for (const auto& entry : fs::directory_iterator(folder, unreadable)) {
    if (IsFolder(entry.path())) folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

// ---- the layout of Hugging Face's cache ----

bool IsHubFolder(const fs::path& folder) {
  return folder.filename().string().starts_with(kHubPrefix) && IsFolder(folder / "snapshots");
}

// "models--org--name" is the repository org/name.
std::string HubName(const fs::path& folder) {
  std::string name = folder.filename().string().substr(kHubPrefix.size());
  const size_t dashes = name.find("--");
  return dashes == std::string::npos ? name : name.replace(dashes, 2, "/");
}

// "" where there is no such reference.
std::string MainRevision(const fs::path& hub_folder) {
  const fs::path reference = hub_folder / "refs" / "main";
  if (!fs::exists(fs::symlink_status(reference))) return "";
  std::string revision = OpenLooseFile(reference).ReadAll(kMaxNameBytes);
  revision.resize(revision.find_last_not_of(" \t\r\n") + 1);
  const bool plain = revision.find('/') == std::string::npos && !revision.starts_with('.');
  return plain ? revision : "";
}

// The snapshot that "main" names; where there is no such reference, the only one.
fs::path Snapshot(const fs::path& hub_folder) {
  const fs::path all = hub_folder / "snapshots";
  const auto refuse = [&](StatusCode code, const std::string& why, const std::string& reason) {
    return Error(code, hub_folder.string() + ": " + why, hub_folder.string(), reason);
  };
  const std::string main = MainRevision(hub_folder);
  if (!main.empty()) {
    if (IsFolder(all / main)) return all / main;
    throw refuse(
        StatusCode::kNotFound,
        "refs/main names snapshot " + main + ", which is not there: the download is not complete",
        "INCOMPLETE_DOWNLOAD");
  }
  const std::vector<fs::path> snapshots = FoldersIn(all);
  if (snapshots.size() == 1) return snapshots.front();
  throw refuse(StatusCode::kInvalidArgument,
               "has no refs/main and " + std::to_string(snapshots.size()) +
                   " snapshots; give the folder of one of them as --model_repository",
               "");
}

FoundModel HubModel(const fs::path& hub_folder) {
  FoundModel model{hub_folder, HubName(hub_folder), {}};
  try {
    model.folder = Snapshot(hub_folder);
  } catch (const Error& error) {
    model.problem = error;
  }
  return model;
}

std::vector<FoundModel> HubModels(const fs::path& hub) {
  std::vector<FoundModel> models;
  for (const fs::path& folder : FoldersIn(hub)) {
    if (!IsHubFolder(folder)) continue;
    // The cache also keeps language models and the like.
    const auto snapshots = FoldersIn(folder / "snapshots");
    if (std::any_of(snapshots.begin(), snapshots.end(), HasIndex)) {
      models.push_back(HubModel(folder));
    }
  }
  return models;
}

// ---- any layout ----

// A snapshot's own folder is named by a hash: the name that people know is two levels up.
std::string NameOf(const fs::path& folder) {
  const fs::path above = folder.parent_path();
  const bool snapshot = above.filename() == "snapshots" && IsHubFolder(above.parent_path());
  return snapshot ? HubName(above.parent_path()) : folder.filename().string();
}

std::vector<FoundModel> Collect(const fs::path& repository) {
  if (HasIndex(repository)) return {{repository, NameOf(repository), {}}};
  if (IsHubFolder(repository)) return {HubModel(repository)};
  std::vector<FoundModel> models = HubModels(repository);
  for (FoundModel& model : HubModels(repository / "hub")) models.push_back(std::move(model));
  for (const fs::path& folder : FoldersIn(repository)) {
    if (HasIndex(folder)) models.push_back({folder, NameOf(folder), {}});
  }
  return models;
}

void CheckName(FoundModel& model, std::set<std::string>& taken) {
  const auto refuse = [&](const std::string& why) {
    model.problem = Error(StatusCode::kInvalidArgument,
                          VisibleText(model.folder.string()) + ": a model's name " + why,
                          "model_repository", "BAD_MODEL_NAME");
  };
  if (model.name.empty()) {
    refuse("must not be empty; rename the folder");
  } else if (VisibleText(model.name) != model.name) {
    refuse("must be UTF-8 without control characters; rename the folder");
  } else if (model.name.size() > kMaxNameBytes) {
    refuse("has at most " + std::to_string(kMaxNameBytes) + " bytes; rename the folder");
  } else if (!model.problem && !taken.insert(model.name).second) {
    refuse("must be its own: another folder here gives the name '" + model.name + "' too");
  }
}

Error NothingFound(const fs::path& repository) {
  return Error(StatusCode::kNotFound, repository.string() + ": no folder in it has a " + kIndex,
               "model_repository");
}

}  // namespace

std::vector<FoundModel> FindModels(const fs::path& repository) {
  if (!IsFolder(repository)) {
    throw Error(StatusCode::kNotFound, repository.string() + ": no such folder",
                "model_repository");
  }
  // "." and a final slash have no name; links keep the one that was given.
  fs::path whole = fs::absolute(repository).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();
  std::vector<FoundModel> models = Collect(whole);
  if (models.empty()) throw NothingFound(repository);
  if (models.size() > kMaxModels) {
    throw Error(StatusCode::kInvalidArgument, repository.string() + ": more than 64 models",
                "model_repository");
  }
  std::stable_sort(models.begin(), models.end(),
                   [](const auto& a, const auto& b) { return a.name < b.name; });
  std::set<std::string> taken;
  for (FoundModel& model : models) CheckName(model, taken);
  return models;
}

}  // namespace denoised
