#include "runtime/pipelines/run_state.h"

#include <charconv>
#include <string_view>
#include <utility>

#include "runtime/loaders/safetensors.h"
#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

using Metadata = std::map<std::string, std::string>;
using Tensors = std::map<std::string, RawTensor>;

constexpr char kFormat[] = "denoised run 1";
constexpr std::string_view kHistory = "history.";

Error Damaged(const std::string& why) { return InvalidField("saved", why); }

// Fields with their lengths, so that no two lists have one text.
class Fields {
 public:
  Fields& Add(std::string_view name, std::string_view value) {
    text_ += std::string(name) + ' ' + std::to_string(value.size()) + ' ';
    text_ += value;
    return *this;
  }
  Fields& Add(std::string_view name, int64_t value) { return Add(name, std::to_string(value)); }
  Fields& Add(std::string_view name, double value) {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, value).ptr;
    return Add(name, std::string_view(text, static_cast<size_t>(end - text)));
  }
  std::string Digest() const { return Sha256Hex(text_); }

 private:
  std::string text_;
};

std::string DigestOf(const Metadata& metadata, const Tensors& tensors) {
  Fields fields;
  for (const auto& [key, value] : metadata) {
    if (key != "digest") fields.Add(key, value);
  }
  for (const auto& [name, tensor] : tensors) {
    fields.Add(name, tensor.dtype);
    for (int64_t size : tensor.shape) fields.Add("axis", size);
    fields.Add("data", Sha256Hex(tensor.data));
  }
  return fields.Digest();
}

constexpr std::pair<DType, std::string_view> kDTypes[] = {
    {DType::kFloat32, "F32"}, {DType::kFloat64, "F64"}, {DType::kInt64, "I64"}};

RawTensor ToRaw(const HostTensor& tensor) {
  for (const auto& [dtype, name] : kDTypes) {
    if (dtype == tensor.dtype) return {std::string(name), tensor.shape, tensor.data};
  }
  throw Error(StatusCode::kInternal, "a run's state has no tensors of such a dtype");
}

HostTensor ToHost(RawTensor raw) {
  for (const auto& [dtype, name] : kDTypes) {
    if (name == raw.dtype) return {dtype, std::move(raw.shape), std::move(raw.data)};
  }
  throw Damaged("has a tensor of dtype " + raw.dtype);
}

const std::string& Get(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) throw Damaged("lacks its " + key);
  return found->second;
}

int64_t StepOf(const std::string& text) {
  int64_t step = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc() || end != text.data() + text.size() || step < 0) {
    throw Damaged("has no step \"" + text.substr(0, 32) + "\"");
  }
  return step;
}

Tensors TensorsOf(const SafetensorsHeader& header, const std::string& bytes) {
  Tensors tensors;
  for (const SafetensorsEntry& entry : header.tensors) {
    tensors[entry.name] = {entry.dtype, entry.shape,
                           bytes.substr(entry.begin, entry.end - entry.begin)};
  }
  return tensors;
}

SafetensorsHeader HeaderOf(const std::string& bytes) {
  try {
    return ParseSafetensorsHeader(bytes, bytes.size(), "saved");
  } catch (const Error& error) {
    throw Damaged(error.what());
  }
}

}  // namespace

std::string RequestDigest(const RunRequest& request) {
  const ResolvedParameters& p = request.parameters;
  Fields fields;
  fields.Add("model", p.model).Add("scheduler", p.scheduler).Add("prompt", request.prompt);
  fields.Add("linear", LinearNumericsName(p.linear));
  if (request.latents) {
    fields.Add("latents", Sha256Hex(request.latents->data));
  } else {
    fields.Add("seed", p.seed);
  }
  fields.Add("height", p.height).Add("width", p.width).Add("num_frames", p.num_frames);
  fields.Add("num_inference_steps", p.num_inference_steps).Add("flow_shift", p.flow_shift);
  fields.Add("max_sequence_length", p.max_sequence_length);
  fields.Add("guidance_scale", p.guidance_scale);
  if (p.guidance_scale > 1) fields.Add("negative_prompt", p.negative_prompt);
  return fields.Digest();
}

std::string SerializeRunState(const RunState& state) {
  Metadata metadata = {{"format", kFormat},
                       {"request", state.request},
                       {"embeddings", state.embeddings},
                       {"step", std::to_string(state.step)},
                       {"solver", state.solver}};
  Tensors tensors = {{"latents", ToRaw(state.latents)}};
  for (const auto& [name, tensor] : state.history) {
    tensors[std::string(kHistory) + name] = ToRaw(tensor);
  }
  metadata["digest"] = DigestOf(metadata, tensors);
  return SerializeSafetensors(tensors, metadata);
}

RunState ParseRunState(const std::string& bytes) {
  const SafetensorsHeader header = HeaderOf(bytes);
  if (Get(header.metadata, "format") != kFormat) throw Damaged("is not a run's state");
  Tensors tensors = TensorsOf(header, bytes);
  if (Get(header.metadata, "digest") != DigestOf(header.metadata, tensors)) {
    throw Damaged("is damaged: its digest is another");
  }
  RunState state;
  state.request = Get(header.metadata, "request");
  state.embeddings = Get(header.metadata, "embeddings");
  state.step = StepOf(Get(header.metadata, "step"));
  state.solver = Get(header.metadata, "solver");
  for (auto& [name, raw] : tensors) {
    if (name == "latents") {
      state.latents = ToHost(std::move(raw));
    } else if (name.starts_with(kHistory)) {
      state.history[name.substr(kHistory.size())] = ToHost(std::move(raw));
    }
  }
  if (!tensors.contains("latents")) throw Damaged("has no latents");
  return state;
}

}  // namespace denoised
