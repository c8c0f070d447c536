#include "runtime/engine/receipt.h"

#include <charconv>

#include "backends/cpu_isa.h"
#include "runtime/engine/ran_rows.h"
#include "runtime/loaders/sha256.h"
#include "runtime/threads.h"
#include "runtime/version.h"

namespace denoised {
namespace {

// Collects named fields and digests them.
class Fields {
 public:
  void Add(std::string_view name, std::string_view value) {
    text_ += std::string(name) + ' ' + std::to_string(value.size()) + ' ';
    text_ += value;
    text_ += '\n';
  }
  void Add(std::string_view name, int64_t value) { Add(name, std::to_string(value)); }
  // In the shortest spelling that reads as the same number.
  void Add(std::string_view name, double value) {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof(text), value + 0.0).ptr;
    Add(name, std::string_view(text, static_cast<size_t>(end - text)));
  }
  void Add(std::string_view name, const HostTensor& tensor) {
    std::string shape;
    for (int64_t size : tensor.shape) shape += std::to_string(size) + ' ';
    Add(name, std::string(DTypeName(tensor.dtype)) + ' ' + shape + Sha256Hex(tensor.data));
  }
  std::string Digest() const { return Sha256Hex(text_); }

 private:
  std::string text_;
};

Fields FieldsOf(const Receipt& receipt) {
  Fields fields;
  fields.Add("format", int64_t{2});
  fields.Add("model_digest", receipt.model_digest);  // over every file, weights too
  fields.Add("dtype", receipt.dtype);
  fields.Add("version", receipt.version);
  fields.Add("torch_version", receipt.torch_version);
  fields.Add("kernels", receipt.kernels);
  fields.Add("linear", receipt.linear);
  for (const std::string& row : RanRows(receipt.entries)) fields.Add("ran", row);
  return fields;
}

// On CUDA the card decides which of a library's kernels runs; on the CPU instruction sets do, and
// its name says nothing.
std::string KernelsOf(const ModelInfo& model, const PlannerSetting& setting) {
  const bool unmeasured = setting.registry == &BackendRegistry::WithUnmeasured();
  const DeviceInfo& device = setting.device;
  if (device.type == DeviceInfo::Type::kCpu) {
    return KernelIdentity() + " vae=" + model.vae_dtype +
           " threads=" + std::to_string(IntraOpThreads());
  }
  return "cuda " + device.name + " " + std::to_string(device.major) + "." +
         std::to_string(device.minor) + " vae=" + model.vae_dtype +
         (unmeasured ? " unmeasured" : "");
}

}  // namespace

void StampReceipt(const ModelInfo& model, const PlannerSetting& setting, LinearNumerics linear,
                  Receipt* receipt) {
  receipt->weights_digest = model.weights_digest;
  receipt->model_digest = model.model_digest;
  receipt->device = setting.device.name;
  receipt->dtype = model.dtype;
  receipt->version = Version();
  receipt->torch_version = LibTorchVersion();
  receipt->kernels = KernelsOf(model, setting);
  receipt->linear = LinearNumericsName(linear);
}

std::string Fingerprint(const Receipt& receipt, const GenerationRequest& request,
                        const ResolvedParameters& parameters) {
  Fields fields = FieldsOf(receipt);
  fields.Add("kind", "generation");
  // The noise, from whichever of the two it comes.
  if (request.latents) {
    fields.Add("latents", *request.latents);
  } else {
    fields.Add("seed", parameters.seed);
  }
  fields.Add("height", parameters.height);
  fields.Add("width", parameters.width);
  fields.Add("num_frames", parameters.num_frames);
  fields.Add("num_inference_steps", parameters.num_inference_steps);
  fields.Add("flow_shift", parameters.flow_shift);
  fields.Add("max_sequence_length", parameters.max_sequence_length);
  fields.Add("scheduler", parameters.scheduler);
  fields.Add("prompt", request.prompt);
  // Without guidance nothing is steered away from.
  if (parameters.guidance_scale > 1) {
    fields.Add("guidance_scale", parameters.guidance_scale);
    fields.Add("negative_prompt", parameters.negative_prompt);
  }
  return fields.Digest();
}

std::string Fingerprint(const Receipt& receipt, const DenoiseRequest& request) {
  Fields fields = FieldsOf(receipt);
  fields.Add("kind", "denoise");
  fields.Add("latents", request.latents);
  fields.Add("timestep", request.timestep);
  fields.Add("encoder_hidden_states", request.encoder_hidden_states);
  if (request.guidance_scale > 1 && request.negative_encoder_hidden_states) {
    fields.Add("guidance_scale", request.guidance_scale);
    fields.Add("negative_encoder_hidden_states", *request.negative_encoder_hidden_states);
  }
  if (request.output == DenoiseRequest::Output::kNextLatents) {
    fields.Add("sigma", request.sigma);
    fields.Add("sigma_next", request.sigma_next);
  }
  return fields.Digest();
}

}  // namespace denoised
