// Which of the files in a component's folder hold its weights. Torch-free.
//
// Names as diffusers 0.42 and transformers 5 write and read them, for a stem like
// "diffusion_pytorch_model" and a variant like "fp16":
//   STEM.safetensors                            STEM.fp16.safetensors
//   STEM.safetensors.index.json                 STEM.safetensors.index.fp16.json
//   (shards: whatever the index names)          STEM.safetensors.fp16.index.json (older writers)
//                                               STEM.fp16.safetensors.index.json (other tools)
#ifndef DENOISED_RUNTIME_LOADERS_WEIGHT_FILES_H_
#define DENOISED_RUNTIME_LOADERS_WEIGHT_FILES_H_

#include <optional>
#include <string>

#include "runtime/loaders/model_folder.h"

namespace denoised {

// One of both: a single file, or the index of a sharded set.
struct WeightFiles {
  std::string single;
  std::string index;
};

// Plain files, or those of the asked variant where the folder has them; where there are no plain
// ones and one variant only, that one. Of a single file and an index the index is taken with a
// warning, as diffusers does, but for "model", where transformers would take the other one:
// INVALID_ARGUMENT naming both. NOT_FOUND saying what lies there instead where there are no
// weights, INVALID_ARGUMENT where only --variant can say which.
WeightFiles FindWeightFiles(const ModelFolder& folder, const std::string& stem);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_WEIGHT_FILES_H_
