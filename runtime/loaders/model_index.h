// model_index.json: which classes a model folder is made of. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_MODEL_INDEX_H_
#define DENOISED_RUNTIME_LOADERS_MODEL_INDEX_H_

#include <map>
#include <optional>
#include <string>

#include "runtime/loaders/model_folder.h"

namespace denoised {

// One `[library, class]` pair; a component that a pipeline may have but this folder lacks is
// `[null, null]` in the file and absent here.
struct ModelComponent {
  std::string library;     // "diffusers", "transformers"
  std::string class_name;  // "WanTransformer3DModel"
};

struct ModelIndex {
  std::string path;                                  // of the file, for errors
  std::string class_name;                            // of the pipeline: "WanPipeline"
  std::map<std::string, ModelComponent> components;  // by folder name
  // Share of the noise schedule above which `transformer` serves and below which `transformer_2`
  // does (Wan 2.2 A14B); empty for models with one expert.
  std::optional<double> boundary_ratio;
  bool expand_timesteps = false;  // a timestep for every token (Wan 2.2 TI2V-5B)
};

// Reads model_index.json of the folder. INVALID_ARGUMENT naming file, key and value where an entry
// is malformed or would change the result in a way that is not known here.
ModelIndex ReadModelIndex(const ModelFolder& folder);

// Throws UNIMPLEMENTED naming file, key and value unless this build can run every component.
// Dispatch is on the classes of the components; folder names only say which role one has.
void CheckSupported(const ModelIndex& index);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_MODEL_INDEX_H_
