// WanPipeline: what it says of requests before they run.
#include <algorithm>

#include "runtime/pipelines/tensor_convert.h"
#include "runtime/pipelines/wan_estimate.h"
#include "runtime/pipelines/wan_pipeline.h"
#include "runtime/pipelines/wan_units.h"
#include "runtime/tokenizer/prompt_clean.h"

namespace denoised {
namespace {

std::string ShapeText(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

void RequireShape(const HostTensor& tensor, at::IntArrayRef shape, const std::string& field) {
  CheckHostTensor(tensor, field);
  if (at::IntArrayRef(tensor.shape) == shape) return;
  throw InvalidField(field + ".shape",
                     "wanted " + ShapeText(shape) + ", got " + ShapeText(tensor.shape));
}

void RequireFloat(const HostTensor& tensor, const std::string& field) {
  if (tensor.dtype == DType::kFloat32 || tensor.dtype == DType::kBFloat16) return;
  throw InvalidField(field + ".dtype",
                     "must be float32 or bfloat16, got " + std::string(DTypeName(tensor.dtype)));
}

void CheckTimestep(const HostTensor& timestep, int64_t rows) {
  RequireShape(timestep, {rows}, "timestep");
  const bool known = timestep.dtype == DType::kFloat32 || timestep.dtype == DType::kInt64;
  if (!known) {
    throw InvalidField("timestep.dtype",
                       "must be float32 or int64, got " + std::string(DTypeName(timestep.dtype)));
  }
  const at::Tensor value = ToTensor(timestep, "timestep").to(at::kDouble);
  if (!at::logical_and(value.ge(0), value.le(1000)).all().item<bool>()) {
    throw InvalidField("timestep", "every value must be between 0 and 1000");
  }
}

// [rows, L, text_dim], finite.
void CheckEmbeds(const HostTensor& embeds, int64_t rows, int64_t text_dim,
                 const std::string& field) {
  RequireFloat(embeds, field);
  const int64_t length = embeds.shape.size() == 3 ? embeds.shape[1] : 1;
  CheckLimit("max_sequence_length", length);
  RequireShape(embeds, {rows, length, text_dim}, field);
  CheckFinite(ToTensor(embeds, field), field);
}

}  // namespace

std::vector<int64_t> WanPipeline::LatentShape(const ResolvedParameters& p) const {
  return {1, transformer_->config().in_channels, (p.num_frames - 1) / rules_.frame_stride + 1,
          p.height / rules_.spatial_stride, p.width / rules_.spatial_stride};
}

std::vector<AttentionSpec> WanPipeline::SpecsFor(at::IntArrayRef latent_shape,
                                                 int64_t text_length) const {
  const auto grid = transformer_->TokenGrid(latent_shape);
  return {transformer_->SelfSpec(grid), transformer_->CrossSpec(grid, text_length)};
}

std::vector<AttentionSpec> WanPipeline::DenoiseSpecs(const ResolvedParameters& parameters) const {
  return SpecsFor(LatentShape(parameters), parameters.max_sequence_length);
}

void WanPipeline::CheckNumerics(const NumericsOptions& numerics) const {
  const std::vector<LinearNumerics>& offered = info_.linear;
  if (!numerics.linear || std::ranges::count(offered, *numerics.linear) > 0) return;
  throw InvalidField("numerics.linear", "wanted one of " + LinearNumericsNames(offered) +
                                            ", which " + info_.name + " offers on " + info_.device +
                                            " in " + info_.dtype + ", got " +
                                            std::string(LinearNumericsName(*numerics.linear)));
}

void WanPipeline::CheckRun(const GenerationRequest& request,
                           const ResolvedParameters& parameters) const {
  CheckNumerics(request.numerics);
  CleanPrompt(request.prompt);  // refuses what is not UTF-8
  try {
    CleanPrompt(parameters.negative_prompt);
  } catch (const Error& error) {
    throw Error(error.code(), std::string("negative_prompt: ") + error.what(), "negative_prompt",
                error.reason());
  }
  if (request.latents) CheckLatents(*request.latents, parameters);
}

void WanPipeline::CheckLatents(const HostTensor& latents,
                               const ResolvedParameters& parameters) const {
  RequireFloat(latents, "latents");
  RequireShape(latents, LatentShape(parameters), "latents");
  CheckFinite(ToTensor(latents, "latents"), "latents");
}

void WanPipeline::CheckSession(const SessionRequest& request,
                               const ResolvedParameters& parameters) const {
  CheckRun(request.generation, parameters);
  const SessionGiven& given = request.given;
  const auto check = [&](const std::optional<HostTensor>& embeds, const std::string& field) {
    if (embeds) CheckEmbeds(*embeds, 1, transformer_->config().text_dim, field);
  };
  check(given.encoder_hidden_states, "encoder_hidden_states");
  check(given.negative_encoder_hidden_states, "negative_encoder_hidden_states");
  if (!given.sigmas.empty()) scheduler_->Clone()->SetSigmas(given.sigmas);
}

void WanPipeline::CheckDenoise(const DenoiseRequest& request) const {
  CheckNumerics(request.numerics);
  constexpr int64_t kMaxRows = 256;
  const WanTransformerConfig& config = transformer_->config();
  const std::vector<int64_t>& shape = request.latents.shape;
  RequireFloat(request.latents, "latents");
  CheckHostTensor(request.latents, "latents");
  if (shape.size() != 5 || shape[0] < 1 || shape[0] > kMaxRows || shape[1] != config.in_channels) {
    throw InvalidField("latents.shape", "wanted [B, " + std::to_string(config.in_channels) +
                                            ", f, h, w] with B from 1 to 256, got " +
                                            ShapeText(shape));
  }
  for (int64_t tokens : transformer_->TokenGrid(shape)) {
    if (tokens > config.rope_max_seq_len) {
      throw InvalidField("latents.shape", "more than " + std::to_string(config.rope_max_seq_len) +
                                              " tokens on one axis: " + ShapeText(shape));
    }
  }
  CheckFinite(ToTensor(request.latents, "latents"), "latents");
  CheckTimestep(request.timestep, shape[0]);
  CheckEmbeds(request.encoder_hidden_states, shape[0], config.text_dim, "encoder_hidden_states");
  CheckLimit("guidance_scale", request.guidance_scale);
  if (request.negative_encoder_hidden_states) {
    CheckEmbeds(*request.negative_encoder_hidden_states, shape[0], config.text_dim,
                "negative_encoder_hidden_states");
  } else if (request.guidance_scale > 1) {
    throw InvalidField("negative_encoder_hidden_states", "needed when guidance_scale is above 1");
  }
  const auto is_sigma = [](double sigma) { return sigma >= 0 && sigma <= 1; };
  if (!is_sigma(request.sigma)) throw InvalidField("sigma", "must be between 0 and 1");
  if (!is_sigma(request.sigma_next)) throw InvalidField("sigma_next", "must be between 0 and 1");
}

WorkEstimate WanPipeline::EstimateRun(const GenerationRequest& request,
                                      const ResolvedParameters& parameters, int64_t available,
                                      const CostOfAttention& cost) const {
  const std::vector<int64_t> latents = LatentShape(parameters);
  WorkEstimate estimate =
      EstimateWanRun(parts(), latents, parameters, request.formats, available, cost);
  estimate.units = WanJobUnits(parts(), latents, request, parameters, cost);
  return estimate;
}

WorkEstimate WanPipeline::EstimateDenoise(const DenoiseRequest& request,
                                          const CostOfAttention& cost) const {
  const std::vector<int64_t>& latents = request.latents.shape;
  const int64_t length = request.encoder_hidden_states.shape[1];
  const bool guided = request.guidance_scale > 1;
  const LinearNumerics linear = LinearOf(request, *this);
  WorkEstimate estimate = EstimateWanCall(parts(), latents, length, guided, linear, cost);
  estimate.units = {
      {WanStepUnit(parts(), latents, latents[0] * (guided ? 2 : 1), length, linear, cost), 1}};
  return estimate;
}

}  // namespace denoised
