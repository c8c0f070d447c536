// Where a text encoder comes from again after its weights were released: the files that it was
// loaded from, which may have changed since.
#ifndef DENOISED_RUNTIME_PIPELINES_TEXT_ENCODER_SOURCE_H_
#define DENOISED_RUNTIME_PIPELINES_TEXT_ENCODER_SOURCE_H_

#include <filesystem>
#include <map>
#include <string>

#include "runtime/loaders/manifest.h"
#include "runtime/loaders/model_folder.h"
#include "runtime/models/umt5.h"

namespace denoised {

// Engine thread.
class TextEncoderSource {
 public:
  // `folder` is the model's, with a text_encoder in it; `manifest` what it was sealed with.
  TextEncoderSource(const ModelFolder& folder, const Manifest& manifest);

  // Reads the weights again, every byte of them hashed. Throws DATA_LOSS, reason MODEL_CHANGED,
  // naming the file that is no longer the one that was loaded, or what the loaders throw; the
  // encoder stays released then, and the next call tries again.
  void Reload(Umt5Encoder* encoder) const;

 private:
  void RequireSame(const Manifest& now) const;

  const std::filesystem::path root_;
  const std::string variant_;
  std::map<std::string, ManifestEntry> weights_;  // of text_encoder/, by path below the root
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_TEXT_ENCODER_SOURCE_H_
