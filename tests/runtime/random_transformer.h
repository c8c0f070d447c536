// A transformer folder of random weights, and plans of attention for it.
#ifndef DENOISED_TESTS_RUNTIME_RANDOM_TRANSFORMER_H_
#define DENOISED_TESTS_RUNTIME_RANDOM_TRANSFORMER_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "runtime/attention/forward_context.h"
#include "runtime/models/wan_transformer.h"

namespace denoised {

struct RandomShape {
  int64_t heads = 2, head_size = 20, ffn = 104, layers = 2, channels = 6, text = 24;
  bool gated = true;       // has to_gate_compress
  bool projection = true;  // has proj_l
};

// config.json and diffusion_pytorch_model.safetensors in a new folder; equal seeds give equal
// bytes.
std::filesystem::path WriteRandomTransformer(const std::filesystem::path& folder,
                                             const RandomShape& shape, uint64_t seed);

// The slots of self- and cross-attention, for a grid and a text length. `parameters` are the
// backend's; the step tells the builder.
AttentionPlan PlanFor(const WanTransformer& model, const std::array<int64_t, 3>& grid,
                      int64_t text_length, AttnBackend self, const std::string& parameters = "",
                      int64_t step = 0);

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_RANDOM_TRANSFORMER_H_
