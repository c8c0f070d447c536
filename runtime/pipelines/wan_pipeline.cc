#include "runtime/pipelines/wan_pipeline.h"

#include <algorithm>

#include "runtime/loaders/attention_schedule.h"
#include "runtime/loaders/weights.h"
#include "runtime/pipelines/device.h"
#include "runtime/pipelines/latent_colours.h"
#include "runtime/pipelines/tensor_convert.h"
#include "runtime/pipelines/wan_denoise_run.h"
#include "runtime/pipelines/wan_run.h"

namespace denoised {
namespace {

constexpr char kOwnFile[] = "denoised.json";

// What WanPipeline.__call__ draws by default.
ResolvedParameters DiffusersDefaults() {
  ResolvedParameters defaults;
  defaults.height = 480;
  defaults.width = 832;
  defaults.num_frames = 81;
  defaults.fps = 16;
  defaults.num_inference_steps = 50;
  defaults.guidance_scale = 5.0;
  defaults.max_sequence_length = 512;
  return defaults;
}

int64_t ParameterCount(const WanTransformerConfig& c, const WanTransformer& model) {
  const int64_t d = c.width();
  const int64_t attention = 4 * (d * d + d) + 2 * d;
  const int64_t block = 2 * attention + (c.cross_attn_norm ? 2 * d : 0) + 2 * d * c.ffn_dim +
                        c.ffn_dim + d + 6 * d + (model.has_gate() ? d * d + d : 0) +
                        (model.has_projection() ? c.head_dim * (c.head_dim + 1) : 0);
  const int64_t patch = d * c.in_channels * c.patch_volume() + d;
  const int64_t time = d * c.freq_dim + d + d * d + d + 6 * (d * d + d);
  const int64_t text = d * c.text_dim + d + d * d + d;
  const int64_t out = c.out_channels * c.patch_volume() * (d + 1) + 2 * d;
  return c.num_layers * block + patch + time + text + out;
}

// The range that shapes a request field's default in denoised.json.
int64_t DefaultInt(const ConfigReader& reader, const std::string& key, int64_t fallback) {
  const int64_t value = reader.Int(key, fallback, 0, INT64_MAX);
  CheckLimit(key, value);
  return value;
}

double DefaultDouble(const ConfigReader& reader, const std::string& key, double fallback) {
  const double value = reader.Double(key, fallback);
  CheckLimit(key, value);
  return value;
}

// denoised.json's numerics.linear, which decides how the weights are kept: read before them.
std::optional<LinearNumerics> ReadLinear(const ConfigReader& own) {
  if (!own.Has("numerics")) return std::nullopt;
  const std::string where = own.path() + ": numerics";
  const ConfigReader numerics(own.json().at("numerics"), where);
  numerics.RequireOnly({"linear"});
  if (!numerics.Has("linear")) return std::nullopt;
  const std::string name = numerics.String("linear", "");
  if (const auto linear = LinearNumericsFromName(name)) return linear;
  throw Error(StatusCode::kInvalidArgument,
              where + ": linear: wanted one of " + LinearNumericsNames(AllLinearNumerics()) +
                  ", came \"" + name + "\"",
              own.path());
}

KeepTextEncoder ParseKeepTextEncoder(const std::string& name) {
  if (name == "auto") return KeepTextEncoder::kAuto;
  if (name == "always") return KeepTextEncoder::kAlways;
  if (name == "never") return KeepTextEncoder::kNever;
  throw InvalidField("keep_text_encoder", "wanted auto, always or never, got \"" + name + "\"");
}

// The sizes of requests and latents follow the config's factors, the frames follow the network.
void CheckVaeScale(const std::string& path, const WanVaeDecoder& vae) {
  const auto check = [&](const std::string& key, int64_t said, int64_t real) {
    if (said == real) return;
    throw Error(StatusCode::kInvalidArgument,
                path + ": " + key + ": wanted " + std::to_string(real) +
                    ", what the decoder's layers enlarge by, came " + std::to_string(said),
                path);
  };
  check("scale_factor_spatial", vae.config().scale_factor_spatial, vae.PixelsOf(1));
  check("scale_factor_temporal", vae.config().scale_factor_temporal, vae.FramesOf(2) - 1);
}

}  // namespace

const LatentColours& WanPipeline::Colours() {
  if (!colours_) colours_ = FitLatentColours(*vae_, setting_);
  return *colours_;
}

std::unique_ptr<WanPipeline> WanPipeline::Load(const ModelFolder& folder, const std::string& name,
                                               const RepositoryOptions& options,
                                               const SelectionPolicy* policy, Logger* logger,
                                               const AdmitWeights& admit) {
  const ModelIndex index = ReadModelIndex(folder);
  CheckSupported(index);
  std::unique_ptr<WanPipeline> pipeline(new WanPipeline(ParseDevice(options.device)));
  pipeline->setting_.registry =
      options.admit_unmeasured ? &BackendRegistry::WithUnmeasured() : &BackendRegistry::Default();
  pipeline->setting_.policy = policy;
  pipeline->setting_.measurements = options.measurements;
  pipeline->setting_.device = QueryDevice(pipeline->device_);
  pipeline->info_.name = pipeline->setting_.model = name;
  pipeline->info_.folder = folder.PathOf("");
  pipeline->keep_text_encoder_ = ParseKeepTextEncoder(options.keep_text_encoder);
  // What is small first: a wrong key is found before the weights are read.
  pipeline->LoadScheduler(folder, index);
  std::optional<ConfigReader> own;
  if (folder.Has(kOwnFile)) own = ConfigReader::FromFile(folder, kOwnFile);
  const std::optional<LinearNumerics> said = own ? ReadLinear(*own) : std::nullopt;
  const std::optional<LinearNumerics> wanted = options.linear ? options.linear : said;
  pipeline->LoadComponents(folder, index, options, wanted.value_or(LinearNumerics::kPacked), admit);
  pipeline->SetDefaults();
  if (own) pipeline->ReadDefaults(*own);
  const Manifest manifest = folder.Seal();
  pipeline->Describe(manifest);
  pipeline->text_encoder_source_.emplace(folder, manifest);
  if (pipeline->keep_text_encoder_ == KeepTextEncoder::kNever) {
    pipeline->info_.weight_bytes -= pipeline->TextEncoderBytes();
    pipeline->ReleaseTextEncoder();
  }
  pipeline->text_encoder_bytes_at_load_ = pipeline->TextEncoderBytes();
  pipeline->WarnUnused(logger);
  if (wanted) pipeline->WarnOtherNumerics(*wanted, logger);
  return pipeline;
}

// As diffusers does, the class that model_index.json names decides, whoever wrote the
// configuration.
void WanPipeline::LoadScheduler(const ModelFolder& folder, const ModelIndex& index) {
  const std::string& wanted = index.components.at("scheduler").class_name;
  const auto config = ConfigReader::FromFile(folder.Sub("scheduler"), "scheduler_config.json");
  const std::string written = config.String("_class_name", wanted);
  if (written != wanted) {
    folder.Warn(config.path() + ": was written by " + written + "; " + wanted +
                ", which model_index.json names, reads it");
  }
  scheduler_ = Scheduler::Create(wanted, config);
  info_.scheduler = wanted;
}

void WanPipeline::LoadComponents(const ModelFolder& folder, const ModelIndex& index,
                                 const RepositoryOptions& options, LinearNumerics linear,
                                 const AdmitWeights& admit) {
  tokenizer_ =
      Tokenizer::Load(folder.Sub("tokenizer"), index.components.at("tokenizer").class_name);
  const at::ScalarType dtype = ParseDType(options.dtype, setting_.device);
  const at::ScalarType vae_dtype = ParseVaeDType(options.vae_dtype, setting_.device);
  // Of the host's memory: a card's own is nobody's count.
  if (device_.is_cpu()) {
    const auto encoder = Weights::Open(folder.Sub("text_encoder"), "model");
    const auto transformer = Weights::Open(folder.Sub("transformer"), "diffusion_pytorch_model");
    const auto vae = Weights::Open(folder.Sub("vae"), "diffusion_pytorch_model");
    const auto bytes = [&](at::ScalarType type) {
      return encoder.BytesAs(type) + transformer.BytesAs(type) + vae.BytesAs(vae_dtype);
    };
    const int64_t most = bytes(dtype);
    if (admit) admit(most);
    info_.weight_bytes = linear == LinearNumerics::kInt8 ? bytes(at::kChar) : most;
  }
  text_encoder_ = Umt5Encoder::Load(folder.Sub("text_encoder"), dtype, device_, linear);
  transformer_ = WanTransformer::Load(folder.Sub("transformer"), dtype, device_, linear);
  vae_ = WanVaeDecoder::Load(folder.Sub("vae"), vae_dtype, device_, linear);
  info_.vae_dtype = DTypeName(FromScalarType(vae_dtype));
  SetNumerics(linear);
  CheckComponents(folder);
  const WanTransformerConfig& config = transformer_->config();
  setting_.layers = {config.num_layers, config.num_layers, 1, 1};
  rules_.spatial_stride = vae_->config().scale_factor_spatial;
  rules_.frame_stride = vae_->config().scale_factor_temporal;
  rules_.height_multiple = rules_.spatial_stride * config.patch_size[1];
  rules_.width_multiple = rules_.spatial_stride * config.patch_size[2];
  rules_.max_tokens_per_axis = config.rope_max_seq_len;
}

// Our kernels are CPU ones, of float32 and bfloat16.
void WanPipeline::SetNumerics(LinearNumerics linear) {
  const bool packs = LoadOptions::CanPack(transformer_->dtype(), device_);
  info_.linear = AllLinearNumerics();
  if (linear == LinearNumerics::kInt8) info_.linear = {linear};  // what is kept gives no other
  if (!packs) info_.linear = {LinearNumerics::kExact};
  info_.defaults.linear = packs ? linear : LinearNumerics::kExact;
}

void WanPipeline::CheckComponents(const ModelFolder& folder) const {
  const WanTransformerConfig& config = transformer_->config();
  const std::string file = folder.Sub("transformer").PathOf("config.json");
  if (text_encoder_->config().d_model != config.text_dim) {
    throw Error(StatusCode::kInvalidArgument,
                file + ": text_dim: wanted " + std::to_string(text_encoder_->config().d_model) +
                    ", the text encoder's d_model, came " + std::to_string(config.text_dim),
                file);
  }
  if (vae_->config().z_dim != config.out_channels || config.in_channels != config.out_channels) {
    throw Error(StatusCode::kInvalidArgument,
                file + ": in_channels and out_channels must both be the VAE's z_dim " +
                    std::to_string(vae_->config().z_dim) + ", came " +
                    std::to_string(config.in_channels) + " and " +
                    std::to_string(config.out_channels),
                file);
  }
  CheckVaeScale(folder.Sub("vae").PathOf("config.json"), *vae_);
}

void WanPipeline::SetDefaults() {
  const LinearNumerics linear = info_.defaults.linear;
  info_.defaults = DiffusersDefaults();
  info_.defaults.linear = linear;
  info_.defaults.model = info_.name;
  info_.defaults.scheduler = info_.scheduler;
  info_.defaults.flow_shift = scheduler_->shift();
}

// denoised.json (ours, optional, beside model_index.json): the model's own defaults.
void WanPipeline::ReadDefaults(const ConfigReader& own) {
  own.RequireOnly({"description", "attention_backend", "attention_parameters", "attention_schedule",
                   "numerics", "defaults"});
  info_.description = own.String("description", "");
  const std::string backend = own.String("attention_backend", "");
  if (!backend.empty()) {
    setting_.model_default = CoerceAttnBackend(backend, own.path() + ": attention_backend");
  }
  if (own.Has("attention_parameters")) {
    setting_.model_default_parameters_json = own.json().at("attention_parameters").dump();
  }
  if (own.Has("defaults")) {
    const std::string where = own.path() + ": defaults";
    try {
      ReadRequestDefaults(ConfigReader(own.json().at("defaults"), where));
    } catch (const Error& error) {
      if (std::string_view(error.what()).find(own.path()) != std::string_view::npos) throw;
      throw Error(error.code(), where + ": " + error.what(), own.path(), error.reason());
    }
  }
  if (own.Has("attention_schedule")) {
    setting_.model_rules =
        ReadSchedule(own.json().at("attention_schedule"), own.path() + ": attention_schedule");
  }
  CheckDefaultAttention(own.path());
}

void WanPipeline::ReadRequestDefaults(const ConfigReader& given) {
  given.RequireOnly({"height", "width", "num_frames", "fps", "num_inference_steps",
                     "guidance_scale", "flow_shift", "max_sequence_length", "negative_prompt",
                     "prompt"});
  ResolvedParameters& defaults = info_.defaults;
  defaults.height = DefaultInt(given, "height", defaults.height);
  defaults.width = DefaultInt(given, "width", defaults.width);
  defaults.num_frames = DefaultInt(given, "num_frames", defaults.num_frames);
  defaults.fps = DefaultInt(given, "fps", defaults.fps);
  defaults.num_inference_steps =
      DefaultInt(given, "num_inference_steps", defaults.num_inference_steps);
  defaults.guidance_scale = DefaultDouble(given, "guidance_scale", defaults.guidance_scale);
  defaults.flow_shift = DefaultDouble(given, "flow_shift", defaults.flow_shift);
  defaults.max_sequence_length =
      DefaultInt(given, "max_sequence_length", defaults.max_sequence_length);
  defaults.negative_prompt = given.String("negative_prompt", "");
  info_.default_prompt = given.String("prompt", "");
  CheckGeometry(defaults.height, defaults.width, defaults.num_frames, rules_);
}

// At the model's own sizes; other sizes are the request's, and a default that does not fit them is
// refused as a wish there.
void WanPipeline::CheckDefaultAttention(const std::string& own_file) const {
  const std::string& parameters = setting_.model_default_parameters_json;
  const auto refuse = [&](const std::string& why) {
    throw Error(StatusCode::kInvalidArgument, own_file + ": attention_parameters: " + why,
                own_file);
  };
  CheckDefaultSchedule(own_file);
  if (!setting_.model_default) {
    if (!parameters.empty()) refuse("need attention_backend to name whose they are");
    return;
  }
  for (const AttentionSpec& spec : DenoiseSpecs(info_.defaults)) {
    if (spec.role != AttentionRole::kSelf) continue;
    if (setting_.registry->WhyNot(*setting_.model_default, spec, setting_.device)) continue;
    try {
      setting_.registry->CanonicalParameters(*setting_.model_default, spec, parameters);
    } catch (const Error& error) {
      refuse(error.what());
    }
  }
}

// For a loop of any length.
void WanPipeline::CheckDefaultSchedule(const std::string& own_file) const {
  PlannerSubject subject;
  subject.attention.schedule = setting_.model_rules;
  subject.num_steps = std::numeric_limits<int64_t>::max();
  try {
    CheckSchedule(setting_, subject, DenoiseSpecs(info_.defaults));
  } catch (const Error& error) {
    const Error named = Renamed(error, "attention.schedule", own_file + ": attention_schedule");
    throw Error(named.code(), named.what(), own_file, named.reason());
  }
}

void WanPipeline::Describe(const Manifest& manifest) {
  const WanTransformerConfig& config = transformer_->config();
  info_.pipeline = "WanPipeline";
  info_.device = setting_.device.name;
  info_.dtype = DTypeName(FromScalarType(transformer_->dtype()));
  info_.weights_digest = manifest.WeightsDigest();
  info_.model_digest = manifest.ModelDigest();
  info_.transformer_parameters = ParameterCount(config, *transformer_);
  info_.num_layers = config.num_layers;
  info_.num_heads = config.num_heads;
  info_.head_size = config.head_dim;
  info_.has_gate = transformer_->has_gate();
}

void WanPipeline::WarnOtherNumerics(LinearNumerics wanted, Logger* logger) const {
  if (info_.defaults.linear == wanted) return;
  logger->Warning("numerics", {{"model", info_.name},
                               {"linear", std::string(LinearNumericsName(wanted))},
                               {"taken", std::string(LinearNumericsName(info_.defaults.linear))},
                               {"device", info_.device},
                               {"dtype", info_.dtype}});
}

void WanPipeline::WarnUnused(Logger* logger) const {
  const auto warn = [&](const std::string& component, const std::vector<std::string>& names) {
    if (names.empty()) return;
    logger->Warning("unexpected_tensors", {{"model", info_.name},
                                           {"component", component},
                                           {"count", std::to_string(names.size())},
                                           {"first", names.front()}});
  };
  warn("transformer", transformer_->unused_tensors());
  warn("text_encoder", text_encoder_->unused_tensors());
  warn("vae", vae_->unused_tensors());
}

std::unique_ptr<GenerationRun> WanPipeline::NewRun(RunRequest request) {
  return std::make_unique<WanRun>(*this, std::move(request));
}

std::unique_ptr<DenoiseRun> WanPipeline::NewDenoiseRun(const DenoiseRequest& request,
                                                       const Unit& step, AttentionPlanner* planner,
                                                       Observer* observer) {
  return std::make_unique<WanDenoiseRun>(*this, request, step, planner, observer);
}

}  // namespace denoised
