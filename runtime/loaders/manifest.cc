#include "runtime/loaders/manifest.h"

#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

std::string DigestOf(const Manifest& manifest, bool only_weights) {
  Sha256 hash;
  for (const auto& [path, entry] : manifest.files) {
    if (only_weights && !entry.weights) continue;
    hash.Update(path + '\0' + std::to_string(entry.size) + '\0' + entry.sha256 + '\n');
  }
  return ToHex(hash.Finish());
}

}  // namespace

std::string Manifest::ModelDigest() const { return DigestOf(*this, false); }
std::string Manifest::WeightsDigest() const { return DigestOf(*this, true); }

}  // namespace denoised
