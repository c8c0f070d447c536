#include "runtime/pipelines/attend.h"

#include <ATen/ATen.h>

#include <chrono>
#include <cmath>

#include "backends/attention_backend.h"
#include "backends/registry.h"
#include "runtime/loaders/config.h"
#include "runtime/loaders/loose_file.h"
#include "runtime/loaders/safetensors.h"
#include "runtime/pipelines/device.h"
#include "runtime/pipelines/tensor_convert.h"

namespace denoised {
namespace {

DType FileDType(const std::string& name, const std::string& field) {
  if (name == "F32") return DType::kFloat32;
  if (name == "BF16") return DType::kBFloat16;
  if (name == "F16") return DType::kFloat16;
  throw InvalidField(field, "dtype must be F32, BF16 or F16, got " + name);
}

std::string FileDTypeName(DType dtype) {
  return dtype == DType::kFloat32 ? "F32" : dtype == DType::kBFloat16 ? "BF16" : "F16";
}

at::Tensor Take(std::map<std::string, RawTensor>& tensors, const std::string& name,
                const at::Device& device) {
  auto found = tensors.find(name);
  if (found == tensors.end()) throw InvalidField(name, "the input file has no such tensor");
  RawTensor& raw = found->second;
  if (raw.shape.size() != 4) throw InvalidField(name, "must be [B, S, H, D]");
  HostTensor host{FileDType(raw.dtype, name), raw.shape, std::move(raw.data)};
  return ToTensor(host, name).to(device);
}

void CheckShapes(const AttentionInputs& in) {
  const auto agree = [](const at::Tensor& a, const at::Tensor& b, const char* name,
                        std::initializer_list<int64_t> axes) {
    for (int64_t axis : axes) {
      if (a.size(axis) != b.size(axis)) {
        throw InvalidField(name, "axis " + std::to_string(axis) + " must be " +
                                     std::to_string(a.size(axis)) + ", got " +
                                     std::to_string(b.size(axis)));
      }
    }
    if (a.scalar_type() != b.scalar_type()) throw InvalidField(name, "dtypes must be equal");
  };
  agree(in.query, in.key, "k", {0, 2, 3});
  agree(in.key, in.value, "v", {0, 1, 2, 3});
  if (in.gate.defined()) agree(in.query, in.gate, "gate", {0, 1, 2, 3});
}

// The "grid" parameter: tokens per axis (T, H, W). In a server it comes from the job instead.
std::array<int64_t, 3> GridParameter(const std::string& parameters_json) {
  if (parameters_json.empty()) return {0, 0, 0};
  const ConfigReader parameters(ParseJsonStrict(parameters_json, "parameters"), "parameters");
  const std::vector<int64_t> grid = parameters.Ints("grid", {0, 0, 0});
  if (grid.size() != 3) throw InvalidField("parameters.grid", "must be [T, H, W]");
  return {grid[0], grid[1], grid[2]};
}

AttentionSpec SpecOf(const AttentionInputs& in, AttnBackend backend) {
  AttentionSpec spec;
  spec.num_heads = in.query.size(2);
  spec.head_size = in.query.size(3);
  spec.dtype = FromScalarType(in.query.scalar_type());
  spec.q_len = in.query.size(1);
  spec.kv_len = in.key.size(1);
  spec.has_gate = true;  // there is no checkpoint to ask: the coarse branch runs, gated or not
  spec.supported = {backend};
  return spec;
}

}  // namespace

AttendResult Attend(const AttendRequest& request) {
  c10::InferenceMode inference;
  const at::Device device = ParseDevice(request.device);
  auto tensors = ReadSafetensors(OpenLooseFile(request.in_path));
  AttentionInputs in;
  in.query = Take(tensors, "q", device);
  in.key = Take(tensors, "k", device);
  in.value = Take(tensors, "v", device);
  if (tensors.contains("gate")) in.gate = Take(tensors, "gate", device);
  CheckShapes(in);
  in.scale = 1 / std::sqrt(static_cast<double>(in.query.size(3)));

  AttentionSpec spec = SpecOf(in, request.backend);
  spec.grid = GridParameter(request.parameters_json);
  const BackendRegistry& registry =
      request.admit_unmeasured ? BackendRegistry::WithUnmeasured() : BackendRegistry::Default();
  if (auto why_not = registry.WhyNot(request.backend, spec, QueryDevice(device))) {
    throw Error(StatusCode::kFailedPrecondition,
                std::string(AttnBackendName(request.backend)) + ": " + *why_not, "backend",
                "BACKEND_REFUSED");
  }
  const AttentionBackend* backend = registry.Find(request.backend)->backend;
  std::shared_ptr<const AttentionMetadata> metadata;
  if (auto builder = backend->MakeBuilder()) {
    metadata = builder->Build({0, 1, spec, request.parameters_json, /*allow_files=*/true});
  }
  const auto start = std::chrono::steady_clock::now();
  const at::Tensor out = backend->Forward(in, metadata.get());
  HostTensor host = FromTensor(out);  // waits for the device
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  WriteSafetensors(request.out_path,
                   {{"o", RawTensor{FileDTypeName(host.dtype), host.shape, std::move(host.data)}}});
  return {out.sizes().vec(), FromScalarType(out.scalar_type()), took.count()};
}

}  // namespace denoised
