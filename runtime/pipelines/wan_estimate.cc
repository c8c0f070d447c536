#include "runtime/pipelines/wan_estimate.h"

#include <algorithm>
#include <optional>

#include "runtime/media/artifacts.h"
#include "runtime/models/model_bytes.h"

namespace denoised {
namespace {

// Code and tables that libraries load at their first use, threads' stacks, and what the allocator
// keeps between two sizes: measured, not derived.
constexpr int64_t kLibraries = int64_t{48} << 20;
constexpr int64_t kFloat = 4;
// All blocks come from one heap (threads.h); those that come and go in different sizes leave gaps.
// Real decodes took up to 1.7 times what was alive. Forwards of one set of rows by our own kernels,
// whose blocks fit each other, took hardly more than that; of several sets, where blocks of one and
// of all come and go, up to 1.87 times, and by ATen's operators up to 1.4.
constexpr double kDecodeGaps = 1.75, kOtherGaps = 1.25, kMixedGaps = 1.9;

int64_t Numbers(const std::vector<int64_t>& shape) {
  int64_t numbers = 1;
  for (int64_t size : shape) numbers *= size;
  return numbers;
}

int64_t WithGaps(int64_t bytes, double gaps) {
  return static_cast<int64_t>(static_cast<double>(bytes) * gaps);
}

double StepGaps(bool guided, LinearNumerics linear) {
  return guided || linear == LinearNumerics::kExact ? kMixedGaps : kOtherGaps;
}

struct Forward {
  int64_t bytes = 0;
  int64_t row_bytes = 0;  // of each row of it
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
  const int64_t bytes = ForwardBytes(config, size, std::max(self.bytes, cross.bytes));
  return {bytes + transformer.FormBytes(linear), bytes / size.rows,
          ForwardMultiplyAdds(config, size) +
              static_cast<double>(config.num_layers) * (self.multiply_adds + cross.multiply_adds)};
}

int64_t TextElement(const WanParts& parts) {
  return static_cast<int64_t>(c10::elementSize(parts.transformer.dtype()));
}

// Of a decode in any number of bands.
class Decodes {
 public:
  Decodes(const WanVaeDecoder& vae, const std::vector<int64_t>& latents, LinearNumerics linear,
          const CostOfAttention& cost)
      : vae_(vae),
        packed_(vae.Packs(linear)),
        size_{latents[2], latents[3], latents[4],
              static_cast<int64_t>(c10::elementSize(vae.dtype()))},
        converted_(vae.ConversionBytes(linear)),
        attention_(cost(vae.Spec(size_.h, size_.w),
                        packed_ ? 1 : WanVaeDecoder::ChunkFrames(size_.f, size_.h, size_.w))
                       .bytes) {}

  int64_t most() const { return packed_ ? vae_.MostBands(size_.h) : 1; }
  DecodeBytes Bytes(int64_t bands) const {
    DecodeSize size = size_;
    size.bands = packed_ ? bands : 0;
    const DecodeBytes bytes = BytesOfDecode(vae_.config(), size, attention_);
    return {converted_ + bytes.peak, converted_ + bytes.held};
  }

 private:
  const WanVaeDecoder& vae_;
  const bool packed_;
  const DecodeSize size_;
  const int64_t converted_, attention_;
};

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

// Both passes of guidance are rows of one forward.
Forward EstimateStep(const WanParts& parts, std::vector<int64_t> latents, int64_t text_length,
                     bool guided, LinearNumerics linear, const CostOfAttention& cost) {
  if (guided) latents[0] *= 2;
  return EstimateForward(parts, latents, text_length, linear, cost);
}

// Of an encoder forward.
int64_t PromptBytes(const WanParts& parts, int64_t length, LinearNumerics linear,
                    const CostOfAttention& cost) {
  return parts.text_encoder.FormBytes(linear) +
         TextEncoderBytes(parts.text_encoder.config(), length, TextElement(parts),
                          cost(parts.text_encoder.Spec(length), 1).bytes);
}

// Where they were released, with what their reading takes beside them.
int64_t WeightsComeBack(const Umt5Encoder& encoder) {
  return encoder.loaded() ? 0 : encoder.WeightBytes() + encoder.WeightBytes() / 8;
}

// A run's bytes in its stages; prompts and steps with their gaps.
struct RunBytes {
  int64_t state = 0, frames = 0;
  int64_t prompts = 0, steps = 0;
  int64_t encoder = 0;  // of its weights after the prompts, against what is loaded now
};

// `decode` may be empty.
WorkEstimate WithFewestBands(WorkEstimate estimate, const RunBytes& run,
                             const std::optional<Decodes>& decode, int64_t available) {
  const int64_t most = decode ? decode->most() : 1;
  for (int64_t bands = 1;; bands = std::min(most, bands + (bands + 1) / 2)) {
    const DecodeBytes bytes = decode ? decode->Bytes(bands) : DecodeBytes{};
    const int64_t last = WithGaps(run.state + run.frames + bytes.peak, kDecodeGaps);
    estimate.decode_bands = bands;
    estimate.held_bytes = run.state + run.frames + bytes.held;
    estimate.peak_bytes =
        kLibraries + std::max(run.prompts, std::max(run.steps, last) + run.encoder);
    if (estimate.peak_bytes <= available || bands == most) return estimate;
  }
}

}  // namespace

double WanForwardMultiplyAdds(const WanParts& parts, const std::vector<int64_t>& latents,
                              int64_t text_length, const CostOfAttention& cost) {
  return EstimateForward(parts, latents, text_length, LinearNumerics::kPacked, cost).multiply_adds;
}

WorkEstimate EstimateWanRun(const WanParts& parts, const std::vector<int64_t>& latents,
                            const ResolvedParameters& p, const std::vector<ArtifactFormat>& formats,
                            int64_t available, const CostOfAttention& cost) {
  const int64_t branches = PassesOf(p.guidance_scale), length = p.max_sequence_length;
  const int64_t element = TextElement(parts), numbers = Numbers(latents);
  const int64_t text = branches * TextContextBytes(parts.transformer.config(), 1, length, element);
  // Latents, what the solver remembers of three steps, and the two predictions.
  const int64_t state = text + 8 * numbers * kFloat;
  const int64_t pixels = p.num_frames * p.height * p.width * 3;
  const bool decodes = WantsFrames(formats);
  const int64_t frames =
      decodes ? pixels * (Wants(formats, ArtifactFormat::kNpy) ? 1 + kFloat : 1) : 0;
  const int64_t encode = frames + EncodeBytes(formats, p, numbers);
  const Forward forward = EstimateStep(parts, latents, length, branches > 1, p.linear, cost);
  WorkEstimate estimate;
  estimate.row_bytes = parts.on_cpu ? WithGaps(forward.row_bytes, kMixedGaps) : 0;
  if (!parts.on_cpu) {
    estimate.held_bytes = frames;
    estimate.peak_bytes = kLibraries + encode;
    estimate.releases_text_encoder = parts.keep == KeepTextEncoder::kNever;
    return estimate;
  }
  RunBytes run{state, frames};
  run.prompts = WithGaps(state + PromptBytes(parts, length, p.linear, cost), kOtherGaps) +
                WeightsComeBack(parts.text_encoder);
  run.steps = WithGaps(state + std::max(forward.bytes, encode), StepGaps(branches > 1, p.linear));
  std::optional<Decodes> decode;
  if (decodes) decode.emplace(parts.vae, latents, p.linear, cost);
  const bool may_keep = parts.keep != KeepTextEncoder::kNever;
  const bool may_release = parts.keep != KeepTextEncoder::kAlways;
  if (may_keep) {
    run.encoder = parts.text_encoder.loaded() ? 0 : parts.text_encoder.WeightBytes();
    estimate = WithFewestBands(estimate, run, decode, available);
    if (!may_release || estimate.peak_bytes <= available) return estimate;
  }
  run.encoder = parts.text_encoder.loaded() ? -parts.text_encoder.WeightBytes() : 0;
  estimate.releases_text_encoder = true;
  return WithFewestBands(estimate, run, decode, available);
}

WorkEstimate EstimateWanCall(const WanParts& parts, const std::vector<int64_t>& latents,
                             int64_t length, bool guided, LinearNumerics linear,
                             const CostOfAttention& cost) {
  const int64_t element = TextElement(parts);
  const Forward forward = EstimateStep(parts, latents, length, guided, linear, cost);
  // The request's copies on the way in and the answer's on the way out, both predictions.
  const int64_t tensors =
      (8 * Numbers(latents) + 4 * latents[0] * length * parts.transformer.config().text_dim) *
      kFloat;
  const int64_t text =
      (guided ? 2 : 1) * TextContextBytes(parts.transformer.config(), latents[0], length, element);
  WorkEstimate estimate;
  estimate.row_bytes = parts.on_cpu ? WithGaps(forward.row_bytes, kMixedGaps) : 0;
  estimate.peak_bytes =
      kLibraries + tensors +
      (parts.on_cpu ? WithGaps(text + forward.bytes, StepGaps(guided, linear)) : 0);
  return estimate;
}

}  // namespace denoised
