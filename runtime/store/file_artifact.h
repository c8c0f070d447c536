// A result in a file of the state folder. Torch-free; any thread.
#ifndef DENOISED_RUNTIME_STORE_FILE_ARTIFACT_H_
#define DENOISED_RUNTIME_STORE_FILE_ARTIFACT_H_

#include <algorithm>
#include <string>
#include <utility>

#include "runtime/job_store.h"
#include "runtime/store/state_folder.h"

namespace denoised {

// Of a job's result in the folder of results.
inline std::string FileName(const std::string& id, ArtifactFormat format) {
  return id + "." + std::string(ArtifactFormatName(format));
}

class FileArtifact : public Artifact {
 public:
  FileArtifact(const ArtifactInfo& info, OwnedFd file) : Artifact(info), file_(std::move(file)) {}

  size_t ReadAt(uint64_t offset, char* to, size_t count) const override {
    if (offset >= size()) return 0;
    count = std::min<uint64_t>(count, size() - offset);
    if (ReadFrom(file_, offset, to, count, info().name) == count) return count;
    throw Error(StatusCode::kDataLoss, "the result " + info().name + " has become shorter");
  }

 private:
  const OwnedFd file_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_FILE_ARTIFACT_H_
