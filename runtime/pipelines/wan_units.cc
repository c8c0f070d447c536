#include "runtime/pipelines/wan_units.h"

#include <algorithm>

#include "runtime/models/model_bytes.h"

namespace denoised {
namespace {

constexpr int64_t kUsualPrompt = 32;  // tokens, before it is read

std::string GroupOf(const char* component, const std::vector<int64_t>& sizes,
                    LinearNumerics linear) {
  std::string group = component;
  for (size_t i = 0; i < sizes.size(); ++i) {
    group += (i == 0 ? ' ' : 'x') + std::to_string(sizes[i]);
  }
  return group + ' ' + std::string(LinearNumericsName(linear));
}

}  // namespace

Unit WanStepUnit(const WanParts& parts, const std::vector<int64_t>& latents, int64_t rows,
                 int64_t text_length, LinearNumerics linear, const CostOfAttention& cost) {
  const std::vector<int64_t> row = {1, latents[1], latents[2], latents[3], latents[4]};
  const auto grid = parts.transformer.TokenGrid(row);
  return {UnitKind::kStep, rows, grid[0] * grid[1] * grid[2],
          GroupOf("transformer", {row.begin() + 1, row.end()}, linear),
          WanForwardMultiplyAdds(parts, row, text_length, cost)};
}

Unit WanEncodeUnit(const WanParts& parts, int64_t tokens, LinearNumerics linear) {
  return {UnitKind::kEncodePrompt, 1, tokens, GroupOf("text_encoder", {}, linear),
          TextEncoderMultiplyAdds(parts.text_encoder.config(), tokens)};
}

Unit WanDecodeUnit(const WanParts& parts, const std::vector<int64_t>& latents, int64_t positions,
                   LinearNumerics linear) {
  return {UnitKind::kDecode, 1, positions, GroupOf("vae", {latents[3], latents[4]}, linear),
          DecodeMultiplyAdds(parts.vae.config(), positions)};
}

std::vector<PlannedUnits> WanJobUnits(const WanParts& parts, const std::vector<int64_t>& latents,
                                      const GenerationRequest& request,
                                      const ResolvedParameters& parameters,
                                      const CostOfAttention& cost) {
  const int64_t passes = PassesOf(parameters.guidance_scale);
  const int64_t tokens = std::min(parameters.max_sequence_length, kUsualPrompt);
  std::vector<PlannedUnits> units = {
      {WanEncodeUnit(parts, tokens, parameters.linear), passes},
      {WanStepUnit(parts, latents, passes, parameters.max_sequence_length, parameters.linear, cost),
       parameters.num_inference_steps}};
  if (!WantsFrames(request.formats)) return units;
  const int64_t frames = latents[2], plane = latents[3] * latents[4];
  const int64_t chunk = WanVaeDecoder::ChunkFrames(frames, latents[3], latents[4]);
  units.push_back({WanDecodeUnit(parts, latents, plane, parameters.linear), 1});
  if (frames > 1) {
    units.push_back({WanDecodeUnit(parts, latents, chunk * plane, parameters.linear),
                     (frames - 2 + chunk) / chunk});
  }
  return units;
}

}  // namespace denoised
