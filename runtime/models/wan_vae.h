// The decoder of Wan's causal video autoencoder (diffusers' AutoencoderKLWan), 2.1 and 2.2.
//
// Decodes a few latent frames at a time; every causal convolution carries its last input frames
// over, so memory does not grow with the length of the video. Paper: arXiv:2503.20314, section 4.1.
#ifndef DENOISED_RUNTIME_MODELS_WAN_VAE_H_
#define DENOISED_RUNTIME_MODELS_WAN_VAE_H_

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/attention/attention_layer.h"
#include "runtime/models/layers.h"
#include "runtime/models/vae_rows.h"

namespace denoised {

class ConfigReader;
class PackedVaeNetwork;
class VaeDecoding;
class WanVaeNetwork;

struct WanVaeConfig {
  int64_t decoder_base_dim = 96;
  int64_t z_dim = 16;
  std::vector<int64_t> dim_mult = {1, 2, 4, 4};
  int64_t num_res_blocks = 2;
  std::vector<bool> temporal_upsample = {true, true, false};  // from the latents' side
  std::vector<double> latents_mean;                           // z_dim numbers
  std::vector<double> latents_std;
  bool is_residual = false;  // Wan 2.2: shortcuts around the up blocks
  int64_t out_channels = 3;  // of the network; 3 * patch_size^2
  int64_t patch_size = 1;    // pixels per side of an output position
  int64_t scale_factor_temporal = 4;
  int64_t scale_factor_spatial = 8;

  // Channels from the latents' side: those of the middle block, then those that each up block ends
  // with.
  std::vector<int64_t> Widths() const;
  // Channels that up block `index` begins with: Wan 2.1's upsamplers halve them on the way.
  int64_t UpBlockInput(size_t index) const;

  // INVALID_ARGUMENT naming file, key and value for anything that this decoder does not do.
  static WanVaeConfig Read(const ConfigReader& reader);
};

// Immutable after Load; engine thread. A decode keeps its state in an object of its own
// (vae_decoding.h).
class WanVaeDecoder {
 public:
  // A part of the video: [1, 3, n, rows, W] in [-1, 1], the VAE's dtype, laid out channels-last:
  // permuted to [n, rows, W, 3] it is contiguous.
  struct Part {
    at::Tensor frames;
    int64_t first_frame, first_row;
  };
  using Sink = std::function<void(const Part& part)>;

  // Reads config.json and the decoder's part of diffusion_pytorch_model.safetensors in `folder`; an
  // encoder in the same file is passed over.
  static std::unique_ptr<WanVaeDecoder> Load(const ModelFolder& folder, at::ScalarType dtype,
                                             at::Device device,
                                             LinearNumerics linear = LinearNumerics::kPacked);
  ~WanVaeDecoder();

  // From the numbers that the transformer works on to those that the decoder takes: in the VAE's
  // dtype, latents / (1 / std) + mean, with the reference's rounding.
  at::Tensor Denormalize(const at::Tensor& latents) const;

  // A decode of latents [1, z_dim, f, h, w], denormalised. It gives parts as they are made: in
  // order of frames, of all FramesOf(f) before the next of `bands` bands of rows. Bands take less
  // memory and change no bit; more than MostBands(h) are as many, and exact numerics have one. It
  // throws INTERNAL, reason NON_FINITE, naming the frames where the network gives NaN or infinity.
  //
  // The weights are kept as Load is told; a decode begun inside of a ScopedLinearNumerics that says
  // otherwise converts them for itself.
  std::unique_ptr<VaeDecoding> Begin(const at::Tensor& latents, int64_t bands = 1) const;
  static int64_t MostBands(int64_t latent_height) { return latent_height; }
  // Whether a decode with these numerics is packed, and what converting the weights for it takes.
  bool Packs(LinearNumerics numerics) const {
    return can_pack_ && numerics != LinearNumerics::kExact;
  }
  int64_t ConversionBytes(LinearNumerics numerics) const;

  // Latent frames of a chunk of such a decode, which is its unit: enough positions that the small
  // layers do not starve, and a single frame of a real video. The first frame is alone.
  static int64_t ChunkFrames(int64_t f, int64_t h, int64_t w);

  // Video frames of f latent frames, and pixels per latent position of an axis.
  int64_t FramesOf(int64_t latent_frames) const;
  int64_t PixelsOf(int64_t latent_size) const;

  // What the middle block's attention needs, for Select(). Latent sizes.
  AttentionSpec Spec(int64_t height, int64_t width) const;

  const WanVaeConfig& config() const { return config_; }
  at::ScalarType dtype() const { return dtype_; }
  const std::vector<std::string>& unused_tensors() const { return unused_; }

 private:
  friend class VaeDecoding;
  // The network that is kept, or one made for a decode.
  std::shared_ptr<const PackedVaeNetwork> Packed() const;
  std::shared_ptr<const WanVaeNetwork> Exact() const;
  LoadOptions FromKept() const;
  // [n, rows, W, 3] as the network gives them.
  void Emit(const at::Tensor& frames, int64_t first_frame, int64_t first_row, int64_t total,
            const Sink& sink) const;
  static void CheckFinite(const at::Tensor& frames, int64_t first_frame, int64_t total);

  WanVaeDecoder(WanVaeConfig config, at::ScalarType dtype);

  const WanVaeConfig config_;
  const at::ScalarType dtype_;
  at::Tensor mean_, inverse_std_;  // [1, z_dim, 1, 1, 1]
  bool can_pack_ = false;
  int64_t point_bytes_ = 0;  // that a packed network takes beside its weights, where it is not kept
  KeptTensors tensors_;      // of which a decode with other numerics makes a network for itself
  // One of them, as most calls want it.
  std::shared_ptr<const WanVaeNetwork> exact_;
  std::shared_ptr<const PackedVaeNetwork> packed_;
  std::vector<std::string> unused_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_WAN_VAE_H_
