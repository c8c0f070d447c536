#include "runtime/store/memory_artifact.h"

#include <algorithm>

#include "runtime/loaders/sha256.h"

namespace denoised {

std::string ReadAll(const Artifact& artifact) {
  std::string bytes(artifact.size(), '\0');
  bytes.resize(artifact.ReadAt(0, bytes.data(), bytes.size()));
  return bytes;
}

size_t MemoryArtifact::ReadAt(uint64_t offset, char* to, size_t count) const {
  if (offset >= bytes_.size()) return 0;
  return bytes_.copy(to, count, offset);
}

ArtifactInfo Completed(ArtifactInfo info, const std::string& bytes) {
  info.size_bytes = bytes.size();
  if (info.sha256.empty()) info.sha256 = Sha256Hex(bytes);
  return info;
}

std::shared_ptr<const Artifact> WhileRead(std::shared_ptr<const Artifact> artifact,
                                          std::shared_ptr<const void> reading) {
  using Pair = std::pair<std::shared_ptr<const Artifact>, std::shared_ptr<const void>>;
  auto both = std::make_shared<Pair>(std::move(artifact), std::move(reading));
  const Artifact* const face = both->first.get();
  return {std::move(both), face};
}

}  // namespace denoised
