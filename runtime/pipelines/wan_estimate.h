// What jobs and Denoise calls of a Wan pipeline will take. Pure; any thread.
#ifndef DENOISED_RUNTIME_PIPELINES_WAN_ESTIMATE_H_
#define DENOISED_RUNTIME_PIPELINES_WAN_ESTIMATE_H_

#include <cstdint>
#include <vector>

#include "runtime/job.h"
#include "runtime/models/umt5.h"
#include "runtime/models/wan_transformer.h"
#include "runtime/models/wan_vae.h"
#include "runtime/pipelines/estimate.h"

namespace denoised {

// Whether the text encoder's weights stay in memory between two prompts: where a job fits beside
// them, always, or never.
enum class KeepTextEncoder : uint8_t { kAuto, kAlways, kNever };

struct WanParts {
  const Umt5Encoder& text_encoder;
  const WanTransformer& transformer;
  const WanVaeDecoder& vae;
  bool on_cpu;
  KeepTextEncoder keep = KeepTextEncoder::kAlways;
};

// `latents` is the shape [1, C, f, h, w]. With the fewest decode_bands that `available` bytes hold;
// where none do and `keep` leaves it open, with the text encoder released after the prompts.
WorkEstimate EstimateWanRun(const WanParts& parts, const std::vector<int64_t>& latents,
                            const ResolvedParameters& parameters,
                            const std::vector<ArtifactFormat>& formats, int64_t available,
                            const CostOfAttention& cost);

// Of a forward of latents [B, C, f, h, w].
double WanForwardMultiplyAdds(const WanParts& parts, const std::vector<int64_t>& latents,
                              int64_t text_length, const CostOfAttention& cost);

// `latents` has B rows, the prompt `length` tokens.
WorkEstimate EstimateWanCall(const WanParts& parts, const std::vector<int64_t>& latents,
                             int64_t length, bool guided, LinearNumerics linear,
                             const CostOfAttention& cost);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_WAN_ESTIMATE_H_
