#include "runtime/pipelines/latent_colours.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "runtime/models/vae_decoding.h"

namespace denoised {
namespace {

// Pictures are smooth: a field of independent numbers decodes to colours that no picture has, one
// number everywhere to as few as there are decodes. Between these, at some 4 positions from one
// random colour to the next, the fit is nearly the best linear one.
constexpr int64_t kPositionsAKnot = 4;
constexpr double kSpread = 1.2;  // standard deviations
constexpr double kRidge = 1e-3;

// [1, channels, 1, side, side]; the same in every process.
at::Tensor SmoothField(int64_t channels) {
  const auto wanted = std::ceil(std::sqrt(2.0 * static_cast<double>(channels + 1)));
  const int64_t knots = std::max<int64_t>(6, static_cast<int64_t>(wanted));
  const int64_t side = kPositionsAKnot * knots;
  const at::Generator generator = at::detail::createCPUGenerator(/*seed=*/1);
  const at::Tensor random =
      at::randn({1, channels, knots, knots}, generator, at::TensorOptions(at::kFloat)) * kSpread;
  return at::upsample_bicubic2d(random, {side, side}, /*align_corners=*/true).unsqueeze(2);
}

// [1, 3, rows, columns] in [-1, 1].
at::Tensor FirstFrame(const WanVaeDecoder& vae, const PlannerSetting& setting,
                      const at::Tensor& latents) {
  Observer nobody;
  AttentionPlanner planner(setting, {}, &nobody);
  ForwardContext context;
  context.attn_metadata = &planner.Prepare({vae.Spec(latents.size(3), latents.size(4))}, 0, 1);
  const ScopedForwardContext scope(context);
  at::Tensor frame;
  vae.Begin(vae.Denormalize(latents))->Next([&](const WanVaeDecoder::Part& part) {
    frame = part.frames.select(2, 0).to(at::kCPU, at::kFloat);
  });
  return frame;
}

}  // namespace

LatentColours FitLatentColours(const WanVaeDecoder& vae, const PlannerSetting& setting) {
  const c10::InferenceMode inference;
  const int64_t channels = vae.config().z_dim, pixels = vae.PixelsOf(1);
  const at::Tensor field = SmoothField(channels);
  const at::Tensor means = at::avg_pool2d(FirstFrame(vae, setting, field), {pixels, pixels});
  // Least squares with a constant, [positions, channels + 1] x [channels + 1, 3].
  const at::Tensor given = field.flatten(2).squeeze(0).t().to(at::kDouble);
  const at::Tensor a = at::cat({given, at::ones({given.size(0), 1}, at::kDouble)}, 1);
  const at::Tensor b = means.flatten(2).squeeze(0).t().to(at::kDouble);
  const at::Tensor ridge = at::eye(channels + 1, at::kDouble) * (kRidge * given.size(0));
  const at::Tensor map =
      at::linalg_solve(a.t().mm(a) + ridge, a.t().mm(b)).to(at::kFloat).contiguous();
  LatentColours colours;
  const float* row = map.const_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c, row += 3) {
    colours.of_channel.push_back({row[0], row[1], row[2]});
  }
  colours.constant = {row[0], row[1], row[2]};
  return colours;
}

}  // namespace denoised
