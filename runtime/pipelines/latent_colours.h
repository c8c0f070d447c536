// What a decoder makes of latents in a large way: the linear map behind previews.
#ifndef DENOISED_RUNTIME_PIPELINES_LATENT_COLOURS_H_
#define DENOISED_RUNTIME_PIPELINES_LATENT_COLOURS_H_

#include "runtime/attention/attention_planner.h"
#include "runtime/media/preview.h"
#include "runtime/models/wan_vae.h"

namespace denoised {

// Fits the colours of latents (as the transformer has them: not denormalised) to what the decoder
// gives for a smooth field of random ones: works for any of them, needs no table of factors. One
// frame of some 24x24 positions is decoded, less than the first chunk of a video of 192x192 pixels.
// Engine thread.
LatentColours FitLatentColours(const WanVaeDecoder& vae, const PlannerSetting& setting);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_LATENT_COLOURS_H_
