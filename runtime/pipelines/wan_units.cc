#include "runtime/pipelines/wan_units.h"

#include "runtime/models/model_bytes.h"

namespace denoised {
namespace {

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

}  // namespace denoised
