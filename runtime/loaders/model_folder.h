// The only door to a model's files. Whatever a loader reads it reads through here, and everything
// that is read is entered in the model's manifest: nothing can change what a model is without
// changing its digest. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_MODEL_FOLDER_H_
#define DENOISED_RUNTIME_LOADERS_MODEL_FOLDER_H_

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "backends/error.h"
#include "runtime/loaders/file.h"
#include "runtime/loaders/manifest.h"

namespace denoised {

class DigestCache;

// A handle: copies and subfolders share one manifest. One thread; large files are hashed beside it.
//
// Where SHA256SUMS lies in the model's folder, every file that is read must be what it says, or
// Seal fails. A file that it lists and a loader looks for must be there. It is no part of the model
// itself and not entered. Files that are only listed are not read.
class ModelFolder {
 public:
  struct Options {
    std::string variant;           // of the weight files; "" = none asked for
    DigestCache* cache = nullptr;  // borrowed; null = every byte is hashed
  };

  // Throws where SHA256SUMS is there and broken.
  explicit ModelFolder(const std::filesystem::path& root);
  ModelFolder(const std::filesystem::path& root, Options options);

  ModelFolder Sub(const std::string& name) const;
  std::string PathOf(const std::string& name) const;  // for errors
  const std::string& variant() const;

  // Whether `name` is here; a link that leads nowhere is, and fails on opening. NOT_FOUND where it
  // is not although SHA256SUMS lists it.
  bool Has(const std::string& name) const;
  // Names of what lies in this folder, sorted; empty where there is no such folder.
  std::vector<std::string> Names() const;

  // An unfinished file of a download tool in this folder, or where Hugging Face's tools keep theirs
  // for it; "" where there is none.
  std::string FindUnfinished() const;

  // The bytes of a small file. Errors as of ReadOnlyFile, CheckKind and ReadAll.
  std::string Read(const std::string& name, uint64_t max_bytes) const;
  // A file of weights; its digest is taken beside whoever reads it.
  std::shared_ptr<const ReadOnlyFile> OpenWeights(const std::string& name) const;

  // Remarks for the log that do not stop the loading.
  void Warn(const std::string& text) const;
  std::vector<std::string> TakeWarnings() const;

  // Which variants of weights the loaders saw, and whether one of them was the one asked for.
  void NoteVariant(const std::string& variant, bool taken) const;
  bool variant_taken() const;
  std::vector<std::string> variants_seen() const;

  // Waits for the digests and compares them with SHA256SUMS: INVALID_ARGUMENT, reason
  // CHECKSUM_MISMATCH, naming the file and both digests. After the last read.
  Manifest Seal() const;
  // `error`, with which the loading ended, and what SHA256SUMS says against a small file that was
  // read: a damaged file mostly fails as something else.
  Error Explain(const Error& error) const;

 private:
  struct State;
  ModelFolder(std::shared_ptr<State> state, std::string below);
  std::string Relative(const std::string& name) const;
  ReadOnlyFile Open(const std::string& name) const;

  std::shared_ptr<State> state_;
  std::string below_;  // the root: "" or "transformer/"
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_MODEL_FOLDER_H_
