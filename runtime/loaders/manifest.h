// What a model was made from: every file that its loaders read. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_MANIFEST_H_
#define DENOISED_RUNTIME_LOADERS_MANIFEST_H_

#include <cstdint>
#include <map>
#include <string>

namespace denoised {

struct ManifestEntry {
  uint64_t size = 0;
  std::string sha256;    // of all bytes, hex: what sha256sum(1) prints
  bool weights = false;  // tensors come from it
};

struct Manifest {
  std::map<std::string, ManifestEntry>
      files;  // by path below the model's folder, '/' between parts

  // SHA-256, hex, over a line "PATH\0SIZE\0SHA256\n" for every file, by path: of all files, or of
  // the weights alone.
  std::string ModelDigest() const;
  std::string WeightsDigest() const;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_MANIFEST_H_
