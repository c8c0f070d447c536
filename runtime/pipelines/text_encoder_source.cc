#include "runtime/pipelines/text_encoder_source.h"

#include "backends/error.h"

namespace denoised {
namespace {

constexpr char kComponent[] = "text_encoder";

}  // namespace

TextEncoderSource::TextEncoderSource(const ModelFolder& folder, const Manifest& manifest)
    : root_(folder.PathOf("")), variant_(folder.variant()) {
  for (const auto& [path, entry] : manifest.files) {
    if (entry.weights && path.starts_with(std::string(kComponent) + "/")) weights_[path] = entry;
  }
}

void TextEncoderSource::Reload(Umt5Encoder* encoder) const {
  const ModelFolder folder(root_, {variant_, nullptr});
  try {
    encoder->Reload(folder.Sub(kComponent));
    RequireSame(folder.Seal());
  } catch (...) {
    encoder->Release();
    throw;
  }
}

void TextEncoderSource::RequireSame(const Manifest& now) const {
  for (const auto& [path, entry] : now.files) {
    const auto loaded = weights_.find(path);
    if (!entry.weights) continue;
    if (loaded != weights_.end() && loaded->second.sha256 == entry.sha256) continue;
    const std::string file = (root_ / path).string();
    throw Error(
        StatusCode::kDataLoss,
        file +
            ": changed since the model was loaded: the text encoder, whose weights were "
            "released, cannot be read again; load the model again (LoadModel), or restart the "
            "server, for the new files",
        file, "MODEL_CHANGED");
  }
}

}  // namespace denoised
