// What the units of Wan runs are called, how large they are and what they multiply. Pure.
#ifndef DENOISED_RUNTIME_PIPELINES_WAN_UNITS_H_
#define DENOISED_RUNTIME_PIPELINES_WAN_UNITS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/numerics.h"
#include "runtime/pipelines/estimate.h"
#include "runtime/pipelines/pipeline.h"
#include "runtime/pipelines/wan_estimate.h"

namespace denoised {

// A step of `rows` rows for latents [.., C, f, h, w].
Unit WanStepUnit(const WanParts& parts, const std::vector<int64_t>& latents, int64_t rows,
                 int64_t text_length, LinearNumerics linear, const CostOfAttention& cost);
Unit WanEncodeUnit(const WanParts& parts, int64_t tokens, LinearNumerics linear);
// A chunk of so many positions of these latents.
Unit WanDecodeUnit(const WanParts& parts, const std::vector<int64_t>& latents, int64_t positions,
                   LinearNumerics linear);

// What a job does, in order, with its decode in one band.
std::vector<PlannedUnits> WanJobUnits(const WanParts& parts, const std::vector<int64_t>& latents,
                                      const GenerationRequest& request,
                                      const ResolvedParameters& parameters,
                                      const CostOfAttention& cost);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_WAN_UNITS_H_
