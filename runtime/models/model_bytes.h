// Peak bytes of the models' forwards on the CPU, by formula, from what is alive at the widest
// points of their code. Who changes what a forward keeps changes its formula here; tests/runtime's
// estimate_test measures both.
#ifndef DENOISED_RUNTIME_MODELS_MODEL_BYTES_H_
#define DENOISED_RUNTIME_MODELS_MODEL_BYTES_H_

#include <cstdint>

#include "runtime/models/umt5.h"
#include "runtime/models/wan_transformer.h"
#include "runtime/models/wan_vae.h"

namespace denoised {

struct ForwardSize {
  int64_t rows = 1, tokens = 0;  // tokens a row
  int64_t element = 4;           // bytes of the model's dtype
  bool gated = false;            // the checkpoint has to_gate_compress
};

// Of one transformer forward, its own rotary tables included. `attention` = bytes of the larger of
// its two kinds of attention.
int64_t ForwardBytes(const WanTransformerConfig& config, const ForwardSize& size,
                     int64_t attention);
// Linear layers of one forward; attention comes on top.
double ForwardMultiplyAdds(const WanTransformerConfig& config, const ForwardSize& size);
// Of the encoder's linear layers for a prompt of `tokens`, and of the decoder's convolutions for so
// many latent positions: about, for times to be told from one size to another.
double TextEncoderMultiplyAdds(const Umt5Config& config, int64_t tokens);
double DecodeMultiplyAdds(const WanVaeConfig& config, int64_t positions);

// Of a TextContext, kept for a whole job, and of making it.
int64_t TextContextBytes(const WanTransformerConfig& config, int64_t rows, int64_t length,
                         int64_t element);

// Of one text encoder forward of `length` tokens.
int64_t TextEncoderBytes(const Umt5Config& config, int64_t length, int64_t element,
                         int64_t attention);

struct DecodeSize {
  int64_t f = 1, h = 1, w = 1;  // of the latents
  int64_t element = 4;          // bytes of the decoder's dtype
  int64_t bands = 0;            // 0: exact numerics, float32
};

// Of a decode, without the frames that leave it: at most, and what stays between two chunks.
struct DecodeBytes {
  int64_t peak = 0, held = 0;
};
DecodeBytes BytesOfDecode(const WanVaeConfig& config, const DecodeSize& size, int64_t attention);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_MODEL_BYTES_H_
