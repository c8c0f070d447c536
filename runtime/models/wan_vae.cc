#include "runtime/models/wan_vae.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/models/finite.h"
#include "runtime/models/vae_conv.h"
#include "runtime/models/vae_decoding.h"
#include "runtime/models/vae_network.h"
#include "runtime/models/vae_packed.h"

namespace denoised {
namespace {

// Latent positions of one chunk: large enough that the small layers do not starve, small enough
// that a chunk of a real video is a single latent frame. Of the shipped model, half as many
// take 1.4 times as long, an eighth 3.3 times (8x8 and 16x16 latents; two Zen 4 cores, loaded,
// 2026-11-26).
constexpr int64_t kChunkPositions = 512;
constexpr int64_t kMaxChunkFrames = 16;

// diffusers' defaults, which Wan 2.1's own config.json repeats.
const std::vector<double>& DefaultMean() {
  static const std::vector<double> mean = {-0.7571, -0.7089, -0.9113, 0.1075,  -0.1745, 0.9653,
                                           -0.1517, 1.5508,  0.4134,  -0.0715, 0.5517,  -0.3632,
                                           -0.1922, -0.9497, 0.2503,  -0.2921};
  return mean;
}
const std::vector<double>& DefaultStd() {
  static const std::vector<double> std = {2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708,
                                          2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
                                          1.6382, 1.1253, 2.8251, 1.9160};
  return std;
}

Error BadConfig(const ConfigReader& reader, const std::string& key, const std::string& wanted) {
  const bool present = reader.json().contains(key);
  return Error(StatusCode::kInvalidArgument,
               reader.path() + ": " + key + ": wanted " + wanted + ", came " +
                   (present ? reader.json().at(key).dump() : std::string("nothing")));
}

void ReadStatistics(const ConfigReader& reader, WanVaeConfig* c) {
  c->latents_mean = reader.Doubles("latents_mean", DefaultMean());
  c->latents_std = reader.Doubles("latents_std", DefaultStd());
  const size_t z = static_cast<size_t>(c->z_dim);
  if (c->latents_mean.size() != z) {
    throw BadConfig(reader, "latents_mean", std::to_string(z) + " numbers (z_dim)");
  }
  const auto positive = [](double x) { return x > 0; };
  if (c->latents_std.size() != z ||
      !std::all_of(c->latents_std.begin(), c->latents_std.end(), positive)) {
    throw BadConfig(reader, "latents_std", std::to_string(z) + " positive numbers (z_dim)");
  }
}

void ReadLevels(const ConfigReader& reader, WanVaeConfig* c) {
  c->dim_mult = reader.Ints("dim_mult", c->dim_mult);
  bool fits = !c->dim_mult.empty() && c->dim_mult.size() <= 8;
  for (int64_t m : c->dim_mult) fits = fits && m >= 1 && m <= 64;
  if (!fits) throw BadConfig(reader, "dim_mult", "one to eight factors from 1 to 64");
  c->temporal_upsample = reader.Bools("temperal_downsample", {false, true, true});
  if (c->temporal_upsample.size() + 1 != c->dim_mult.size()) {
    throw BadConfig(reader, "temperal_downsample", "one flag less than dim_mult has factors");
  }
  std::reverse(c->temporal_upsample.begin(), c->temporal_upsample.end());
}

// Channel counts that the topology cannot divide.
void CheckWidths(const ConfigReader& reader, const WanVaeConfig& c) {
  const int64_t levels = static_cast<int64_t>(c.dim_mult.size());
  for (int64_t i = 0; i + 1 < levels; ++i) {
    const int64_t out = c.decoder_base_dim * c.dim_mult[levels - 1 - i];
    const int64_t in = i == 0 ? out : c.decoder_base_dim * c.dim_mult[levels - i];
    const int64_t spread = out * 4 * (c.temporal_upsample[i] ? 2 : 1);
    if (!c.is_residual && out % 2 != 0) {
      throw BadConfig(reader, "base_dim", "even channel counts on every level but the last");
    }
    if (c.is_residual && spread % in != 0) {
      throw BadConfig(reader, "dim_mult", "factors whose shortcuts divide evenly");
    }
  }
}

}  // namespace

WanVaeConfig WanVaeConfig::Read(const ConfigReader& reader) {
  WanVaeConfig c;
  reader.RequireOneOf("_class_name", {"AutoencoderKLWan"});
  const int64_t base_dim = reader.Int("base_dim", 96, 1, 1 << 14);
  c.decoder_base_dim = reader.Int("decoder_base_dim", base_dim, 1, 1 << 14);
  c.z_dim = reader.Int("z_dim", c.z_dim, 1, 1 << 12);
  c.num_res_blocks = reader.Int("num_res_blocks", c.num_res_blocks, 0, 64);
  c.is_residual = reader.Bool("is_residual", c.is_residual);
  c.patch_size = reader.Int("patch_size", c.patch_size, 1, 16);
  c.out_channels = reader.Int("out_channels", c.out_channels, 1, 1 << 12);
  if (c.out_channels != 3 * c.patch_size * c.patch_size) {
    throw BadConfig(reader, "out_channels",
                    "3 * patch_size^2 = " + std::to_string(3 * c.patch_size * c.patch_size));
  }
  c.scale_factor_temporal = reader.Int("scale_factor_temporal", c.scale_factor_temporal, 1, 64);
  c.scale_factor_spatial = reader.Int("scale_factor_spatial", c.scale_factor_spatial, 1, 256);
  ReadLevels(reader, &c);
  ReadStatistics(reader, &c);
  CheckWidths(reader, c);
  return c;
}

std::vector<int64_t> WanVaeConfig::Widths() const {
  std::vector<int64_t> widths = {decoder_base_dim * dim_mult.back()};
  for (auto factor = dim_mult.rbegin(); factor != dim_mult.rend(); ++factor) {
    widths.push_back(decoder_base_dim * *factor);
  }
  return widths;
}

int64_t WanVaeConfig::UpBlockInput(size_t index) const {
  const int64_t width = Widths()[index];
  return index > 0 && !is_residual ? width / 2 : width;
}

WanVaeDecoder::WanVaeDecoder(WanVaeConfig config, at::ScalarType dtype)
    : config_(std::move(config)), dtype_(dtype) {}

WanVaeDecoder::~WanVaeDecoder() = default;

std::unique_ptr<WanVaeDecoder> WanVaeDecoder::Load(const ModelFolder& folder, at::ScalarType dtype,
                                                   at::Device device, LinearNumerics linear) {
  const auto config = WanVaeConfig::Read(ConfigReader::FromFile(folder, "config.json"));
  SpecDType(dtype);
  Weights weights = Weights::Open(folder, "diffusion_pytorch_model");
  std::unique_ptr<WanVaeDecoder> vae(new WanVaeDecoder(config, dtype));
  vae->can_pack_ = LoadOptions::CanPack(dtype, device);
  LoadOptions from{&weights, dtype, device, linear};
  if (vae->can_pack_) from.keeps = &vae->tensors_;
  if (vae->Packs(linear)) {
    vae->packed_ = std::make_shared<PackedVaeNetwork>(config, from);
  } else {
    vae->exact_ = std::make_shared<WanVaeNetwork>(config, from);
    for (const auto& [name, tensor] : vae->tensors_.by_name) {
      vae->point_bytes_ += VaeConvolution::PointBytes(tensor().sizes(), dtype);
    }
  }
  // Rounded to the dtype before the reciprocal, as the reference pipeline does.
  const auto statistic = [&](const std::vector<double>& values) {
    return at::tensor(at::ArrayRef<double>(values), at::kFloat)
        .view({1, config.z_dim, 1, 1, 1})
        .to(device, dtype);
  };
  vae->mean_ = statistic(config.latents_mean);
  vae->inverse_std_ = 1.0 / statistic(config.latents_std);
  for (const std::string& name : weights.Unused()) {
    if (!name.starts_with("encoder.") && !name.starts_with("quant_conv.")) {
      vae->unused_.push_back(name);
    }
  }
  return vae;
}

at::Tensor WanVaeDecoder::Denormalize(const at::Tensor& latents) const {
  c10::InferenceMode guard;
  return latents.to(mean_.options()) / inverse_std_ + mean_;
}

// The first frame is a chunk of its own.
int64_t WanVaeDecoder::ChunkFrames(int64_t f, int64_t h, int64_t w) {
  const int64_t most = std::clamp<int64_t>(kChunkPositions / (h * w), 1, kMaxChunkFrames);
  return std::clamp<int64_t>(f - 1, 1, most);
}

int64_t WanVaeDecoder::FramesOf(int64_t latent_frames) const {
  int64_t factor = 1;
  for (bool doubles : config_.temporal_upsample) factor *= doubles ? 2 : 1;
  return 1 + (latent_frames - 1) * factor;
}

int64_t WanVaeDecoder::PixelsOf(int64_t latent_size) const {
  return (latent_size << (config_.dim_mult.size() - 1)) * config_.patch_size;
}

AttentionSpec WanVaeDecoder::Spec(int64_t height, int64_t width) const {
  AttentionSpec spec;
  spec.role = AttentionRole::kVae;
  spec.num_heads = 1;
  spec.head_size = config_.decoder_base_dim * config_.dim_mult.back();
  spec.dtype = SpecDType(dtype_);
  spec.q_len = spec.kv_len = height * width;
  spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa, AttnBackend::kReference};
  return spec;
}

// Before the clamp, which would make a plain picture of an overflow. Frames count from 1, as people
// count them.
void WanVaeDecoder::CheckFinite(const at::Tensor& frames, int64_t first_frame, int64_t total) {
  if (AllFinite(frames)) return;
  const at::Tensor fine = at::isfinite(frames).flatten(1).all(1).to(at::kCPU);  // [n]
  const at::Tensor bad = fine.logical_not().nonzero().flatten() + (first_frame + 1);
  const std::string first = std::to_string(bad[0].item<int64_t>());
  const std::string last = std::to_string(bad[-1].item<int64_t>());
  throw Error(StatusCode::kInternal,
              "the decoder gave numbers that are not finite in " +
                  (first == last ? "frame " + first : "frames " + first + " to " + last) + " of " +
                  std::to_string(total) + "; the weights of the vae overflow or are damaged",
              "", "NON_FINITE");
}

void WanVaeDecoder::Emit(const at::Tensor& frames, int64_t first_frame, int64_t first_row,
                         int64_t total, const Sink& sink) const {
  CheckFinite(frames, first_frame, total);
  frames.clamp_(-1.0, 1.0);
  sink({frames.permute({3, 0, 1, 2}).unsqueeze(0), first_frame, first_row});
}

// The network's own form, and one more of a layer at a time.
int64_t WanVaeDecoder::ConversionBytes(LinearNumerics numerics) const {
  if (Packs(numerics) == (packed_ != nullptr)) return 0;
  return tensors_.bytes * 5 / 4 + (Packs(numerics) ? point_bytes_ : 0);
}

LoadOptions WanVaeDecoder::FromKept() const {
  LoadOptions from{nullptr, dtype_, mean_.device()};
  from.instead = &tensors_;
  return from;
}

std::shared_ptr<const PackedVaeNetwork> WanVaeDecoder::Packed() const {
  return packed_ ? packed_ : std::make_shared<PackedVaeNetwork>(config_, FromKept());
}

std::shared_ptr<const WanVaeNetwork> WanVaeDecoder::Exact() const {
  return exact_ ? exact_ : std::make_shared<WanVaeNetwork>(config_, FromKept());
}

std::unique_ptr<VaeDecoding> WanVaeDecoder::Begin(const at::Tensor& latents, int64_t bands) const {
  const c10::InferenceMode guard;
  RequireDim(latents, 5, "latents");
  RequireSize(latents, 0, 1, "latents");
  RequireSize(latents, 1, config_.z_dim, "latents");
  // [1, z, f, h, w] -> [f, h, w, z]
  const at::Tensor x = latents.to(mean_.options()).squeeze(0).permute({1, 2, 3, 0}).contiguous();
  const LinearNumerics kept = packed_ ? LinearNumerics::kPacked : LinearNumerics::kExact;
  const LinearNumerics numerics = CurrentLinearNumerics(kept);
  const int64_t most = Packs(numerics) ? MostBands(x.size(1)) : 1;
  return std::unique_ptr<VaeDecoding>(
      new VaeDecoding(*this, x, numerics, std::clamp<int64_t>(bands, 1, most)));
}

}  // namespace denoised
