// A decode in units: a chunk of latent frames of one band at a time, so that whoever runs it can
// look at other work in between, and may leave it for as long as it likes.
#ifndef DENOISED_RUNTIME_MODELS_VAE_DECODING_H_
#define DENOISED_RUNTIME_MODELS_VAE_DECODING_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>

#include "runtime/models/vae_conv.h"
#include "runtime/models/vae_layers.h"
#include "runtime/models/wan_vae.h"
#include "runtime/numerics.h"

namespace denoised {

// Made by WanVaeDecoder::Begin, which outlives it; engine thread. Between two chunks it holds the
// latents, the past of the causal convolutions (of one band), and the weights where it had to
// convert them: model_bytes.h has the formula.
class VaeDecoding {
 public:
  // How much a chunk is; its time goes by the positions of its frames.
  struct Chunk {
    int64_t latent_frames = 0;
    int64_t video_frames = 0;       // of which a video's first latent frame makes only one
    int64_t rows = 0, columns = 0;  // of the latents that the band shows; layers see some around it
  };

  bool done() const { return band_ == bands_; }
  // The one that Next will decode; not once done. The first of a band is latent frame 0 alone,
  // later ones have WanVaeDecoder::ChunkFrames, the last what is left.
  Chunk NextChunk() const;
  // Decodes it, in the numerics of Begin, and hands its parts to `sink`; FAILED_PRECONDITION once
  // done. Inside a ScopedForwardContext whose plan has a backend for AttentionRole::kVae, which is
  // called once for each latent frame, in exact numerics once for all of the chunk's.
  //
  // What is thrown (a stop point's Error, NON_FINITE, the sink's own) puts the decode back to its
  // beginning: the convolutions' past is half way then, and a second past to fall back to would
  // nearly double the memory. So it can always go on, and hands the same parts out again.
  void Next(const WanVaeDecoder::Sink& sink);

 private:
  friend class WanVaeDecoder;
  VaeDecoding(const WanVaeDecoder& decoder, at::Tensor latents, LinearNumerics numerics,
              int64_t bands);

  RowRange BandRows() const;  // of the last layer's positions
  void StartBand(int64_t band);
  void Decode(const at::Tensor& latents, const WanVaeDecoder::Sink& sink);

  const WanVaeDecoder& decoder_;
  const at::Tensor latents_;  // [f, h, w, z_dim], contiguous
  const LinearNumerics numerics_;
  const int64_t bands_;
  // One of them, the decoder's or made for this decode, with its past.
  std::shared_ptr<const WanVaeNetwork> exact_;
  std::shared_ptr<const PackedVaeNetwork> packed_;
  VaeState exact_past_;
  VaePast packed_past_;
  int64_t band_ = 0;
  int64_t latent_ = 0, frame_ = 0;  // the band's next: of the latents, of the video
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_VAE_DECODING_H_
