// Results: what both stores make of the feed's, and those in memory. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_MEMORY_ARTIFACT_H_
#define DENOISED_RUNTIME_STORE_MEMORY_ARTIFACT_H_

#include <memory>
#include <string>
#include <utility>

#include "runtime/job_store.h"

namespace denoised {

class MemoryArtifact : public Artifact {
 public:
  MemoryArtifact(ArtifactInfo info, std::string bytes)
      : Artifact(std::move(info)), bytes_(std::move(bytes)) {}

  size_t ReadAt(uint64_t offset, char* to, size_t count) const override;

 private:
  const std::string bytes_;
};

// `info` with the size of `bytes` and, where it has none, their digest.
ArtifactInfo Completed(ArtifactInfo info, const std::string& bytes);

// `artifact`, whose job counts as read for as long as somebody holds what this returns.
std::shared_ptr<const Artifact> WhileRead(std::shared_ptr<const Artifact> artifact,
                                          std::shared_ptr<const void> reading);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_MEMORY_ARTIFACT_H_
