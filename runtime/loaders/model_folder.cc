#include "runtime/loaders/model_folder.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "backends/error.h"
#include "runtime/loaders/checksums.h"
#include "runtime/loaders/digest_cache.h"
#include "runtime/loaders/file_hasher.h"
#include "runtime/loaders/file_kind.h"
#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;

constexpr char kChecksums[] = "SHA256SUMS";
constexpr char kMismatch[] = "CHECKSUM_MISMATCH";  // reason
constexpr uint64_t kMaxChecksumBytes = 4 << 20;

std::vector<std::string> NamesIn(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code unreadable;
  for (const auto& entry : fs::directory_iterator(folder, unreadable)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

struct ModelFolder::State {
  fs::path root;
  Options options;
  Checksums expected;
  Manifest manifest;
  std::map<std::string, std::shared_ptr<const ReadOnlyFile>> weights;  // by path below the root
  std::vector<std::string> warnings;
  std::set<std::string> variants;
  bool variant_taken = false;
  FileHasher hasher;  // last: writes into `manifest`

  std::string CachePath(const std::string& path) const {
    return fs::absolute(root / path).string();
  }

  // Enters what was read; a second reading must have found the same.
  void Enter(const std::string& path, const ManifestEntry& entry) {
    const auto [known, fresh] = manifest.files.emplace(path, entry);
    if (!fresh && known->second.sha256 != entry.sha256) {
      const std::string file = (root / path).string();
      throw Error(StatusCode::kDataLoss, file + ": the file changed while the model was loaded",
                  file);
    }
  }

  // What SHA256SUMS says against a file whose digest is known; "" where it says nothing.
  std::string Mismatch(const std::string& path, const std::string& sha256) const {
    const auto listed = expected.find(path);
    if (listed == expected.end() || listed->second == sha256) return "";
    return (root / path).string() + ": SHA256SUMS says " + listed->second + ", the file has " +
           sha256 + ": it is damaged or another version; fetch it again";
  }
};

ModelFolder::ModelFolder(const fs::path& root) : ModelFolder(root, Options()) {}

ModelFolder::ModelFolder(const fs::path& root, Options options)
    : state_(std::make_shared<State>()) {
  state_->root = root;
  state_->options = std::move(options);
  const fs::path sums = root / kChecksums;
  if (!fs::exists(fs::symlink_status(sums))) return;
  const ReadOnlyFile file(sums);
  if (file.size() == 0) return;
  CheckKind(file);
  state_->expected = ParseChecksums(file.ReadAll(kMaxChecksumBytes), sums.string());
}

ModelFolder::ModelFolder(std::shared_ptr<State> state, std::string below)
    : state_(std::move(state)), below_(std::move(below)) {}

ModelFolder ModelFolder::Sub(const std::string& name) const {
  return ModelFolder(state_, below_ + name + "/");
}

std::string ModelFolder::Relative(const std::string& name) const { return below_ + name; }

std::string ModelFolder::PathOf(const std::string& name) const {
  return (state_->root / Relative(name)).string();
}

const std::string& ModelFolder::variant() const { return state_->options.variant; }

bool ModelFolder::Has(const std::string& name) const {
  std::error_code unreadable;
  const auto status = fs::symlink_status(PathOf(name), unreadable);
  if (fs::exists(status)) return true;
  if (!state_->expected.contains(Relative(name))) return false;
  throw Error(StatusCode::kNotFound,
              PathOf(name) + ": SHA256SUMS lists it, and it is not there: fetch it again",
              PathOf(name), "INCOMPLETE_DOWNLOAD");
}

std::vector<std::string> ModelFolder::Names() const { return NamesIn(state_->root / below_); }

std::string ModelFolder::FindUnfinished() const {
  const fs::path& root = state_->root;
  std::vector<fs::path> places = {root / below_, root / ".cache/huggingface/download" / below_};
  if (root.parent_path().filename() == "snapshots") {
    places.push_back(root.parent_path().parent_path() / "blobs");
  }
  for (const fs::path& place : places) {
    const std::string name = UnfinishedDownload(NamesIn(place));
    if (!name.empty()) return (place / name).string();
  }
  return "";
}

ReadOnlyFile ModelFolder::Open(const std::string& name) const {
  try {
    ReadOnlyFile file{fs::path(PathOf(name))};
    // That tool makes the file in its whole length before it has the bytes.
    if (fs::exists(fs::symlink_status(file.path() + ".aria2"))) {
      throw Error(StatusCode::kInvalidArgument,
                  file.path() + ": its .aria2 file says that the download was not finished",
                  file.path(), "INCOMPLETE_DOWNLOAD");
    }
    CheckKind(file);
    return file;
  } catch (const Error& error) {
    if (error.code() != StatusCode::kNotFound || !error.reason().empty()) throw;
    const std::string unfinished = FindUnfinished();
    const std::string hint =
        unfinished.empty()
            ? " (a download that is not complete?)"
            : "; " + unfinished + " is a download that was not finished: fetch it again";
    throw Error(error.code(), error.what() + hint, error.field(),
                unfinished.empty() ? "" : "INCOMPLETE_DOWNLOAD");
  }
}

std::string ModelFolder::Read(const std::string& name, uint64_t max_bytes) const {
  const ReadOnlyFile file = Open(name);
  std::string bytes = file.ReadAll(max_bytes);
  state_->Enter(Relative(name), {file.size(), Sha256Hex(bytes), /*weights=*/false});
  return bytes;
}

std::shared_ptr<const ReadOnlyFile> ModelFolder::OpenWeights(const std::string& name) const {
  const std::string path = Relative(name);
  if (const auto open = state_->weights.find(path); open != state_->weights.end()) {
    return open->second;
  }
  auto fresh = std::make_shared<const ReadOnlyFile>(Open(name));
  ManifestEntry& entry = state_->manifest.files[path];
  entry.size = fresh->size();
  entry.weights = true;
  const DigestCache* cache = state_->options.cache;
  const auto known = cache ? cache->Find(state_->CachePath(path), fresh->stamp()) : std::nullopt;
  if (known) {
    entry.sha256 = *known;
  } else {
    state_->hasher.Add(fresh, &entry.sha256);
  }
  state_->weights.emplace(path, fresh);
  return fresh;
}

void ModelFolder::Warn(const std::string& text) const {
  auto& warnings = state_->warnings;
  if (std::find(warnings.begin(), warnings.end(), text) == warnings.end()) warnings.push_back(text);
}

std::vector<std::string> ModelFolder::TakeWarnings() const {
  return std::exchange(state_->warnings, {});
}

void ModelFolder::NoteVariant(const std::string& variant, bool taken) const {
  state_->variants.insert(variant);
  state_->variant_taken = state_->variant_taken || taken;
}

bool ModelFolder::variant_taken() const { return state_->variant_taken; }

std::vector<std::string> ModelFolder::variants_seen() const {
  return {state_->variants.begin(), state_->variants.end()};
}

Error ModelFolder::Explain(const Error& error) const {
  if (error.reason() == kMismatch) return error;
  for (const auto& [path, entry] : state_->manifest.files) {
    const std::string mismatch = entry.weights ? "" : state_->Mismatch(path, entry.sha256);
    if (mismatch.empty()) continue;
    return Error(error.code(), std::string(error.what()) + "; " + mismatch, error.field(),
                 error.reason().empty() ? kMismatch : error.reason());
  }
  return error;
}

Manifest ModelFolder::Seal() const {
  state_->hasher.Wait();
  // What was loaded after it was hashed must be what was hashed.
  for (const auto& [path, file] : state_->weights) file->CheckUnchanged();
  if (DigestCache* cache = state_->options.cache) {
    for (const auto& [path, file] : state_->weights) {
      cache->Put(state_->CachePath(path), file->stamp(), state_->manifest.files.at(path).sha256);
    }
  }
  for (const auto& [path, entry] : state_->manifest.files) {
    const std::string mismatch = state_->Mismatch(path, entry.sha256);
    if (mismatch.empty()) continue;
    throw Error(StatusCode::kInvalidArgument, mismatch, (state_->root / path).string(), kMismatch);
  }
  const auto read = [&](const auto& listed) {
    return state_->manifest.files.contains(listed.first);
  };
  const Checksums& expected = state_->expected;
  if (!expected.empty() && std::none_of(expected.begin(), expected.end(), read)) {
    Warn(PathOf(kChecksums) + ": lists none of the files that were read: nothing was checked");
  }
  return state_->manifest;
}

}  // namespace denoised
