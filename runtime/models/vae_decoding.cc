#include "runtime/models/vae_decoding.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>

#include "backends/error.h"
#include "runtime/models/vae_network.h"
#include "runtime/models/vae_packed.h"

namespace denoised {

VaeDecoding::VaeDecoding(const WanVaeDecoder& decoder, at::Tensor latents, LinearNumerics numerics,
                         int64_t bands)
    : decoder_(decoder), latents_(std::move(latents)), numerics_(numerics), bands_(bands) {
  if (decoder.Packs(numerics)) {
    packed_ = decoder.Packed();
  } else {
    exact_ = decoder.Exact();
  }
  StartBand(0);
}

void VaeDecoding::StartBand(int64_t band) {
  band_ = band;
  latent_ = frame_ = 0;
  exact_past_ = exact_ && !done() ? exact_->MakeState() : VaeState();
  packed_past_ = packed_ && !done() ? packed_->NewPast() : VaePast();
}

RowRange VaeDecoding::BandRows() const {
  return BandOf(latents_.size(1) * (packed_ ? packed_->scale() : 1), band_, bands_);
}

VaeDecoding::Chunk VaeDecoding::NextChunk() const {
  const int64_t f = latents_.size(0), h = latents_.size(1), w = latents_.size(2);
  const int64_t most = latent_ == 0 ? 1 : WanVaeDecoder::ChunkFrames(f, h, w);
  const int64_t frames = std::min(most, f - latent_);
  const int64_t before = latent_ == 0 ? 0 : decoder_.FramesOf(latent_);
  return {frames, decoder_.FramesOf(latent_ + frames) - before, BandOf(h, band_, bands_).size(), w};
}

void VaeDecoding::Next(const WanVaeDecoder::Sink& sink) {
  if (done()) throw Error(StatusCode::kFailedPrecondition, "the decode is done: no chunk is left");
  const c10::InferenceMode guard;
  const ScopedLinearNumerics numerics(numerics_);
  const int64_t count = NextChunk().latent_frames;
  try {
    Decode(latents_.narrow(0, latent_, count), sink);
  } catch (...) {
    StartBand(0);
    throw;
  }
  latent_ += count;
  if (latent_ == latents_.size(0)) StartBand(band_ + 1);
}

void VaeDecoding::Decode(const at::Tensor& latents, const WanVaeDecoder::Sink& sink) {
  const auto emit = [&](const at::Tensor& frames) {
    decoder_.Emit(frames, frame_, BandRows().first * decoder_.config().patch_size,
                  decoder_.FramesOf(latents_.size(0)), sink);
    frame_ += frames.size(0);
  };
  if (exact_) return emit(exact_->Run(latents, &exact_past_));
  packed_->Run(latents, BandRows(), latent_ == 0, &packed_past_,
               [&](const at::Tensor& frame) { emit(frame.unsqueeze(0)); });
}

}  // namespace denoised
