// Drives models and schedulers for tests/parity: one JSON object a line on stdin, one a line back.
//
//   {"load": "m", "kind": "dit", "dir": "...", "dtype": "bfloat16", "device": "cuda"}
//   kinds: dit umt5 vae scheduler; without "device" it is the CPU
//   {"run": "m", "in": "a.safetensors", "out": "b.safetensors", "backend": "TORCH_SDPA", "repeat":
//   1}
//   {"drop": "m"}
// A run of a dit with "parameters" (JSON text) has its self-attention on "backend", the rest on
// TORCH_SDPA.
// Answers {"ok": true, "seconds": [...], "cpu_seconds": [...], "peak_kib": 1} or {"ok": false,
// "error": "...", "code": 3}. Not part of the product.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "backends/attention_backend.h"
#include "backends/cpu_isa.h"
#include "backends/error.h"
#include "backends/registry.h"
#include "backends/stop_point.h"
#include "runtime/attention/forward_context.h"
#include "runtime/loaders/config.h"
#include "runtime/loaders/loose_file.h"
#include "runtime/loaders/model_folder.h"
#include "runtime/loaders/safetensors.h"
#include "runtime/models/umt5.h"
#include "runtime/models/vae_decoding.h"
#include "runtime/models/wan_transformer.h"
#include "runtime/models/wan_vae.h"
#include "runtime/pipelines/device.h"
#include "runtime/schedulers/scheduler.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using Tensors = std::map<std::string, at::Tensor>;

const std::map<std::string, at::ScalarType>& Dtypes() {
  static const std::map<std::string, at::ScalarType> dtypes = {
      {"F32", at::kFloat}, {"BF16", at::kBFloat16}, {"F64", at::kDouble}, {"I64", at::kLong}};
  return dtypes;
}

Tensors ReadTensors(const std::string& path) {
  Tensors tensors;
  for (const auto& [name, raw] : ReadSafetensors(OpenLooseFile(path))) {
    at::Tensor t = at::empty(raw.shape, Dtypes().at(raw.dtype));
    std::memcpy(t.mutable_data_ptr(), raw.data.data(), raw.data.size());
    tensors[name] = t;
  }
  return tensors;
}

void WriteTensors(const std::string& path, const Tensors& tensors) {
  std::map<std::string, RawTensor> raw;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor t = tensor.contiguous();
    RawTensor& out = raw[name];
    for (const auto& [dtype, type] : Dtypes()) {
      if (type == t.scalar_type()) out.dtype = dtype;
    }
    out.shape = t.sizes().vec();
    out.data.assign(static_cast<const char*>(t.const_data_ptr()), t.nbytes());
  }
  WriteSafetensors(path, raw);
}

at::ScalarType DtypeOf(const Json& request) {
  return request.value("dtype", "float32") == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

LinearNumerics LinearOf(const Json& request) {
  return LinearNumericsFromName(request.value("linear", "exact")).value();
}

at::Device DeviceOf(const Json& request) { return ParseDevice(request.value("device", "cpu")); }

// Something that was loaded and turns tensors into tensors.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual Tensors Run(const Tensors& in) = 0;
  virtual AttentionSpec SelfSpec(const Tensors& in) const { return {}; }
  virtual Json Facts() const { return Json::object(); }
};

class DitSubject : public Subject {
 public:
  explicit DitSubject(const Json& r)
      : model_(WanTransformer::Load(ModelFolder(r.at("dir").get<std::string>()), DtypeOf(r),
                                    DeviceOf(r), LinearOf(r))) {}
  Tensors Run(const Tensors& in) override {
    // A job encodes its text once; `text` is timed apart by sending "encode".
    if (in.contains("encode")) text_ = model_->EncodeText(in.at("embeds"));
    return {{"out", model_->Forward(in.at("latents"), in.at("timestep"), text_).cpu()}};
  }
  AttentionSpec SelfSpec(const Tensors& in) const override {
    return model_->SelfSpec(model_->TokenGrid(in.at("latents").sizes()));
  }
  Json Facts() const override { return {{"unused", model_->unused_tensors()}}; }

 private:
  std::unique_ptr<WanTransformer> model_;
  TextContext text_;
};

class Umt5Subject : public Subject {
 public:
  explicit Umt5Subject(const Json& r)
      : model_(Umt5Encoder::Load(ModelFolder(r.at("dir").get<std::string>()), DtypeOf(r),
                                 DeviceOf(r), LinearOf(r))) {}
  Tensors Run(const Tensors& in) override {
    return {{"out", model_->Forward(in.at("ids"), in.at("mask")).cpu()}};
  }
  Json Facts() const override { return {{"unused", model_->unused_tensors()}}; }

 private:
  std::unique_ptr<Umt5Encoder> model_;
};

class VaeSubject : public Subject {
 public:
  explicit VaeSubject(const Json& r)
      : model_(WanVaeDecoder::Load(ModelFolder(r.at("dir").get<std::string>()), DtypeOf(r),
                                   DeviceOf(r), LinearOf(r))) {}
  Tensors Run(const Tensors& in) override {
    const at::Tensor latents = model_->Denormalize(in.at("latents"));
    const int64_t bands = in.contains("bands") ? in.at("bands").item<int64_t>() : 1;
    std::vector<std::vector<at::Tensor>> parts;  // of a band each
    int64_t expected = 0, rows = 0, asked = 0;
    const auto sink = [&](const WanVaeDecoder::Part& part) {
      if (part.first_frame == 0) {
        TORCH_CHECK(part.first_row == rows, "bands out of order");
        rows += part.frames.size(3);
        parts.emplace_back();
        expected = 0;
      }
      TORCH_CHECK(part.first_frame == expected, "frames out of order");
      expected += part.frames.size(2);
      if (!in.contains("discard") || parts.back().empty()) parts.back().push_back(part.frames);
    };
    const ScopedStopCheck stop([&]() -> std::optional<Error> {
      const bool stops =
          in.contains("stop_after") && asked++ >= in.at("stop_after").item<int64_t>();
      return stops ? std::optional(Error(StatusCode::kCancelled, "stopped")) : std::nullopt;
    });
    const auto decoding = model_->Begin(latents, bands);
    while (!decoding->done()) decoding->Next(sink);
    TORCH_CHECK(expected == model_->FramesOf(latents.size(2)), "FramesOf is wrong");
    TORCH_CHECK(rows == model_->PixelsOf(latents.size(3)), "PixelsOf is wrong");
    std::vector<at::Tensor> whole;
    for (const auto& band : parts) whole.push_back(at::cat(band, 2));
    return {{"denormalized", latents.cpu()}, {"out", at::cat(whole, 3).cpu()}};
  }
  Json Facts() const override { return {{"unused", model_->unused_tensors()}}; }

 private:
  std::unique_ptr<WanVaeDecoder> model_;
};

// Runs a whole trajectory: outputs [N, ..] of a model against given starting latents.
class SchedulerSubject : public Subject {
 public:
  explicit SchedulerSubject(const Json& r) {
    const std::filesystem::path path = r.at("dir").get<std::string>();
    const auto config =
        ConfigReader::FromFile(ModelFolder(path.parent_path()), path.filename().string());
    // The class of the pipeline's index, where the request names one.
    scheduler_ = Scheduler::Create(r.value("class", config.String("_class_name", "")), config);
    if (r.contains("shift")) shift_ = r.at("shift").get<double>();
  }
  Tensors Run(const Tensors& in) override {
    const at::Tensor outputs = in.at("model_outputs");
    const std::unique_ptr<Scheduler> scheduler = scheduler_->Clone();
    scheduler->SetTimesteps(outputs.size(0), shift_);
    at::Tensor sample = in.at("sample");
    std::vector<at::Tensor> samples, times;
    for (int64_t i = 0; i < outputs.size(0); ++i) {
      times.push_back(scheduler->TimestepTensor(i, 1, at::kCPU));
      sample = scheduler->Step(outputs[i], i, sample);
      samples.push_back(sample);
    }
    const std::vector<double>& sigmas = scheduler->sigmas();
    return {{"samples", at::stack(samples)},
            {"timesteps", at::cat(times)},
            {"sigmas", at::tensor(at::ArrayRef<double>(sigmas), at::kDouble).to(at::kFloat)}};
  }

 private:
  std::unique_ptr<Scheduler> scheduler_;
  std::optional<double> shift_;
};

std::unique_ptr<Subject> MakeSubject(const Json& request) {
  const std::string kind = request.at("kind");
  if (kind == "dit") return std::make_unique<DitSubject>(request);
  if (kind == "umt5") return std::make_unique<Umt5Subject>(request);
  if (kind == "vae") return std::make_unique<VaeSubject>(request);
  if (kind == "scheduler") return std::make_unique<SchedulerSubject>(request);
  throw Error(StatusCode::kInvalidArgument, "kind: came " + kind);
}

// Every role on one backend.
AttentionPlan PlanOfOne(const std::string& name) {
  const BackendRegistry::Entry* entry =
      BackendRegistry::WithUnmeasured().Find(CoerceAttnBackend(name, "backend"));
  TORCH_CHECK(entry != nullptr && entry->backend != nullptr, "no backend ", name);
  AttentionPlan plan;
  for (RolePlan& role : plan) {
    AttentionSlot slot;
    slot.backend = entry->backend;
    slot.id = entry->id;
    role = slot;
  }
  return plan;
}

AttentionPlan PlanFor(const Json& request, const Subject& subject, const Tensors& in) {
  const std::string name = request.value("backend", "TORCH_SDPA");
  if (!request.contains("parameters")) return PlanOfOne(name);
  AttentionPlan plan = PlanOfOne("TORCH_SDPA");
  RolePlan& role = plan[static_cast<size_t>(AttentionRole::kSelf)];
  role = PlanOfOne(name)[static_cast<size_t>(AttentionRole::kSelf)];
  AttentionSlot& self = role.slots.front();
  self.metadata = self.backend->MakeBuilder()->Build(
      {0, 1, subject.SelfSpec(in), request.at("parameters").get<std::string>()});
  return plan;
}

Json RunSubject(Subject* subject, const Json& request) {
  c10::InferenceMode guard;
  Tensors in = ReadTensors(request.at("in"));
  const AttentionPlan plan = PlanFor(request, *subject, in);
  ForwardContext context;
  context.attn_metadata = &plan;
  const ScopedForwardContext scope(context);
  std::optional<ScopedLinearNumerics> numerics;  // else as the weights are kept
  if (request.contains("linear")) numerics.emplace(LinearOf(request));
  Tensors out;
  std::vector<double> seconds, cpu_seconds;
  for (int i = 0; i < request.value("repeat", 1); ++i) {
    const auto start = std::chrono::steady_clock::now();
    const std::clock_t cpu_start = std::clock();
    out = subject->Run(in);
    cpu_seconds.push_back(static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    in.erase("encode");
  }
  if (request.contains("out")) WriteTensors(request.at("out"), out);
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return {{"ok", true},
          {"seconds", seconds},
          {"cpu_seconds", cpu_seconds},
          {"peak_kib", usage.ru_maxrss}};
}

Json Answer(const Json& request, std::map<std::string, std::unique_ptr<Subject>>* subjects) {
  if (request.contains("threads")) at::set_num_threads(request.at("threads"));
  if (request.contains("load")) {
    std::unique_ptr<Subject> subject = MakeSubject(request);
    Json answer = {{"ok", true}, {"facts", subject->Facts()}};
    (*subjects)[request.at("load")] = std::move(subject);
    return answer;
  }
  if (request.contains("run")) return RunSubject(subjects->at(request.at("run")).get(), request);
  if (request.contains("drop")) subjects->erase(request.at("drop").get<std::string>());
  return {{"ok", true}};
}

Json AnswerOrError(const std::string& line,
                   std::map<std::string, std::unique_ptr<Subject>>* subjects) {
  try {
    return Answer(Json::parse(line), subjects);
  } catch (const Error& e) {
    return {{"ok", false}, {"error", e.what()}, {"code", static_cast<int>(e.code())}};
  } catch (const std::exception& e) {
    return {{"ok", false}, {"error", e.what()}, {"code", -1}};
  }
}

}  // namespace
}  // namespace denoised

namespace {

// --cpu_isa=LEVEL, "auto" without. False where the machine lacks the level.
bool PinFrom(int argc, char** argv) {
  constexpr std::string_view kFlag = "--cpu_isa=";
  if (argc < 2) return true;
  const std::string_view argument = argv[1];
  TORCH_CHECK(argument.starts_with(kFlag), "unknown argument ", argument);
  try {
    denoised::PinCpuIsa(denoised::CpuIsaFromName(argument.substr(kFlag.size())).value());
  } catch (const denoised::Error&) {
    return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  if (!PinFrom(argc, argv)) return kSkipped;
  std::map<std::string, std::unique_ptr<denoised::Subject>> subjects;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << denoised::AnswerOrError(line, &subjects).dump() << std::endl;
  }
  return 0;
}
