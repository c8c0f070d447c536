#include "runtime/engine/receipt.h"

#include <charconv>

#include "backends/cpu_isa.h"
#include "backends/intra_op.h"
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
  void Add(const Fields& others) { text_ += others.text_; }
  std::string Digest() const { return Sha256Hex(text_); }
  const std::string& text() const { return text_; }
  static Fields Of(std::string text) {
    Fields fields;
    fields.text_ = std::move(text);
    return fields;
  }

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

// Where the latents come from, sizes and schedule.
Fields TrajectoryFields(const GenerationRequest& request, const ResolvedParameters& parameters) {
  Fields fields;
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
  return fields;
}

void AddPrompts(const GenerationRequest& request, const ResolvedParameters& parameters,
                Fields* fields) {
  fields->Add("prompt", request.prompt);
  // Without guidance nothing is steered away from.
  if (parameters.guidance_scale <= 1) return;
  fields->Add("guidance_scale", parameters.guidance_scale);
  fields->Add("negative_prompt", parameters.negative_prompt);
}

std::string LevelsText(const std::vector<double>& sigmas) {
  Fields levels;
  for (double sigma : sigmas) levels.Add("sigma", sigma);
  return levels.text();
}

}  // namespace

void StampReceipt(const EngineWork& work, LinearNumerics linear, Receipt* receipt) {
  const ModelInfo& model = work.pipeline->info();
  const PlannerSetting& setting = work.pipeline->planner_setting();
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
  return Fingerprint(receipt, SessionFields(request, {}, parameters));
}

Receipt StampedReceipt(const EngineWork& work, LinearNumerics linear) {
  Receipt receipt;
  receipt.entries = work.planner->Entries();
  receipt.notes = work.planner->Notes();
  StampReceipt(work, linear, &receipt);
  return receipt;
}

std::string SessionFields(const GenerationRequest& request, const SessionGiven& given,
                          const ResolvedParameters& parameters) {
  Fields fields = TrajectoryFields(request, parameters);
  if (!given.sigmas.empty()) fields.Add("sigmas", LevelsText(given.sigmas));
  if (!given.encoder_hidden_states) {
    AddPrompts(request, parameters, &fields);
    return fields.text();
  }
  fields.Add("encoder_hidden_states", *given.encoder_hidden_states);
  if (given.negative_encoder_hidden_states) {
    fields.Add("negative_encoder_hidden_states", *given.negative_encoder_hidden_states);
  }
  fields.Add("guidance_scale", parameters.guidance_scale);
  return fields.text();
}

std::string AddStep(const std::string& history, const std::vector<ReceiptEntry>& ran) {
  Fields fields;
  fields.Add("before", history);
  for (const std::string& row : RanRows(ran)) fields.Add("ran", row);
  return fields.Digest();
}

std::string AddChange(const std::string& history, const SessionWrite& write, int64_t step) {
  Fields fields;
  fields.Add("before", history);
  if (write.latents) fields.Add("latents", *write.latents);
  fields.Add("step", step);
  fields.Add("keep_history", int64_t{write.keep_history});
  return fields.Digest();
}

std::string AddChange(const std::string& history, double guidance_scale,
                      const std::string& negative_prompt) {
  Fields fields;
  fields.Add("before", history);
  fields.Add("guidance_scale", guidance_scale);
  fields.Add("negative_prompt", negative_prompt);
  return fields.Digest();
}

std::string DenoiseFields(const DenoiseRequest& request) {
  Fields fields;
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
  return fields.text();
}

std::string Fingerprint(const Receipt& receipt, const std::string& fields,
                        const std::string& history) {
  Fields all = FieldsOf(receipt);
  all.Add(Fields::Of(fields));
  if (!history.empty()) all.Add("history", history);
  return all.Digest();
}

}  // namespace denoised
