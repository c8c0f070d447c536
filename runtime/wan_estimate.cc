#include "runtime/wan_estimate.h"

#include <algorithm>

#include "runtime/artifacts.h"
#include "runtime/models/model_bytes.h"

namespace denoised {
namespace {

// Code and tables that libraries load at their first use, threads' stacks, and what the allocator
// keeps between two sizes: measured, not derived.
constexpr int64_t kLibraries = int64_t{48} << 20;
constexpr int64_t kFloat = 4;
// All blocks come from one heap (threads.h); those that come and go in different sizes leave gaps.
// Real decodes took up to 1.7 times what was alive, forwards, whose blocks fit each other, hardly
// more than that.
constexpr double kDecodeGaps = 1.75, kOtherGaps = 1.25;

int64_t Numbers(const std::vector<int64_t>& shape) {
  int64_t numbers = 1;
  for (int64_t size : shape) numbers *= size;
  return numbers;
}

int64_t WithGaps(int64_t bytes, double gaps) {
  return static_cast<int64_t>(static_cast<double>(bytes) * gaps);
}

struct Forward {
  int64_t bytes = 0;
  double multiply_adds = 0;
};

Forward EstimateForward(const WanParts& parts, const std::vector<int64_t>& latents,
                        int64_t text_length, LinearNumerics linear, const CostOfAttention& cost) {
  const WanTransformer& transformer = parts.transformer;
  const WanTransformerConfig& config = transformer.config();
  const auto grid = transformer.TokenGrid(latents);
  const ForwardSize size{latents[0], grid[0] * grid[1] * grid[2],
                         static_cast<int64_t>(c10::elementSize(transformer.dtype())),
                         transformer.has_gate()};
  const AttentionCost self = cost(transformer.SelfSpec(grid), size.rows);
  const AttentionCost cross = cost(transformer.CrossSpec(grid, text_length), size.rows);
  return {
      ForwardBytes(config, size, std::max(self.bytes, cross.bytes)) + transformer.FormBytes(linear),
      ForwardMultiplyAdds(config, size) +
          static_cast<double>(config.num_layers) * (self.multiply_adds + cross.multiply_adds)};
}

int64_t TextElement(const WanParts& parts) {
  return static_cast<int64_t>(c10::elementSize(parts.transformer.dtype()));
}

bool Wants(const std::vector<ArtifactFormat>& formats, ArtifactFormat format) {
  return std::find(formats.begin(), formats.end(), format) != formats.end();
}

int64_t DecodeAtOnce(const WanVaeDecoder& vae, const std::vector<int64_t>& latents,
                     LinearNumerics linear, int64_t bands, const CostOfAttention& cost) {
  const int64_t f = latents[2], h = latents[3], w = latents[4];
  const bool packed = vae.Packs(linear);
  const int64_t attended = packed ? 1 : WanVaeDecoder::ChunkFrames(f, h, w);
  const DecodeSize size{f, h, w, static_cast<int64_t>(c10::elementSize(vae.dtype())),
                        packed ? std::clamp<int64_t>(bands, 1, vae.MostBands(h)) : 0};
  return vae.ConversionBytes(linear) +
         DecodeBytes(vae.config(), size, cost(vae.Spec(h, w), attended).bytes);
}

int64_t EncodeBytes(const std::vector<ArtifactFormat>& formats, const ResolvedParameters& p,
                    int64_t latents) {
  int64_t files = 0, workspace = 0;
  for (ArtifactFormat format : formats) {
    const ArtifactBytes bytes =
        EstimateArtifact(format, p.num_frames, p.height, p.width, latents * kFloat);
    files += bytes.file;
    workspace = std::max(workspace, bytes.workspace);
  }
  return files + workspace;
}

}  // namespace

WorkEstimate EstimateWanRun(const WanParts& parts, const std::vector<int64_t>& latents,
                            const ResolvedParameters& p, const std::vector<ArtifactFormat>& formats,
                            int64_t bands, const CostOfAttention& cost) {
  const int64_t branches = p.guidance_scale > 1 ? 2 : 1, length = p.max_sequence_length;
  const int64_t element = TextElement(parts), numbers = Numbers(latents);
  const int64_t text = branches * TextContextBytes(parts.transformer.config(), 1, length, element);
  // Latents, what the solver remembers of three steps, and the two predictions.
  const int64_t state = text + 8 * numbers * kFloat;
  const int64_t pixels = p.num_frames * p.height * p.width * 3;
  const bool decodes = !(formats.size() == 1 && Wants(formats, ArtifactFormat::kSafetensors));
  const int64_t frames =
      decodes ? pixels * (Wants(formats, ArtifactFormat::kNpy) ? 1 + kFloat : 1) : 0;
  const int64_t encode = frames + EncodeBytes(formats, p, numbers);
  const Forward forward = EstimateForward(parts, latents, length, p.linear, cost);
  WorkEstimate estimate;
  estimate.decode_bands = bands;
  estimate.step_multiply_adds = static_cast<double>(branches) * forward.multiply_adds;
  if (!parts.on_cpu) {
    estimate.held_bytes = frames;
    estimate.peak_bytes = kLibraries + encode;
    return estimate;
  }
  const int64_t encoder = parts.text_encoder.FormBytes(p.linear) +
                          TextEncoderBytes(parts.text_encoder.config(), length, element,
                                           cost(parts.text_encoder.Spec(length), 1).bytes);
  const int64_t decode =
      decodes ? frames + DecodeAtOnce(parts.vae, latents, p.linear, bands, cost) : 0;
  estimate.held_bytes = state + frames;
  estimate.peak_bytes =
      kLibraries +
      std::max(WithGaps(state + std::max({encoder, forward.bytes, encode}), kOtherGaps),
               WithGaps(state + decode, kDecodeGaps));
  return estimate;
}

WorkEstimate EstimateWanCall(const WanParts& parts, const std::vector<int64_t>& latents,
                             int64_t length, bool guided, LinearNumerics linear,
                             const CostOfAttention& cost) {
  const int64_t element = TextElement(parts);
  const Forward forward = EstimateForward(parts, latents, length, linear, cost);
  // The request's copies on the way in and the answer's on the way out, both predictions.
  const int64_t tensors =
      (8 * Numbers(latents) + 4 * latents[0] * length * parts.transformer.config().text_dim) *
      kFloat;
  const int64_t text = TextContextBytes(parts.transformer.config(), latents[0], length, element);
  WorkEstimate estimate;
  estimate.step_multiply_adds = (guided ? 2 : 1) * forward.multiply_adds;
  estimate.peak_bytes =
      kLibraries + tensors + (parts.on_cpu ? WithGaps(text + forward.bytes, kOtherGaps) : 0);
  return estimate;
}

}  // namespace denoised
