// Our side of the model rows: one long-lived program that answers a JSON line for each JSON line,
// as peer/wan_peer.py does. Tensors travel as files of raw float32: {"file": path, "shape": [..]}.
//
//   model_bench [--cpu_isa=LEVEL]
#include <ATen/ATen.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/kernels/buffer.h"
#include "backends/registry.h"
#include "backends/selector.h"
#include "runtime/attention/forward_context.h"
#include "runtime/engine.h"
#include "runtime/loaders/digest_cache.h"
#include "runtime/loaders/loose_file.h"
#include "runtime/models/layers.h"
#include "runtime/models/umt5.h"
#include "runtime/models/vae_decoding.h"
#include "runtime/models/wan_transformer.h"
#include "runtime/models/wan_vae.h"
#include "runtime/pipelines/device.h"
#include "runtime/threads.h"
#include "tests/bench/answers.h"
#include "tests/bench/kernel_clock.h"
#include "tests/bench/timing.h"
#include "tests/peak_memory.h"

namespace denoised {
namespace {

double Seconds(const std::function<void()>& work, int repeat) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeat; ++i) work();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / repeat;
}

// Of all threads; on a machine that others use, nearer to what work takes than the clock is.
double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

at::Tensor ReadTensor(const Json& tensor) {
  const auto shape = tensor.at("shape").get<std::vector<int64_t>>();
  at::Tensor out = at::empty(shape, at::kFloat);
  std::ifstream file(tensor.at("file").get<std::string>(), std::ios::binary);
  file.read(static_cast<char*>(out.data_ptr()), static_cast<std::streamsize>(out.nbytes()));
  if (!file) throw Error(StatusCode::kInvalidArgument, "input file: shorter than its shape");
  return out;
}

void WriteBytes(const std::string& path, const void* data, size_t size) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  if (!file) throw Error(StatusCode::kUnavailable, path + ": cannot be written");
}

void WriteTensor(const at::Tensor& tensor, const std::string& path) {
  const at::Tensor plain = tensor.to(at::kFloat).contiguous();
  WriteBytes(path, plain.data_ptr(), plain.nbytes());
}

at::ScalarType ScalarType(const std::string& name) {
  return name == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

std::string Name(at::ScalarType dtype) { return dtype == at::kBFloat16 ? "bfloat16" : "float32"; }

// What --linear and a request may say.
LinearNumerics Numerics(const Json& request) {
  const std::string name = request.value("linear", "packed");
  const auto numerics = LinearNumericsFromName(name);
  if (!numerics) throw Error(StatusCode::kInvalidArgument, "no linear numerics " + name);
  return *numerics;
}

// What the engine's planner does for a step: automatic selection, the backend's metadata.
class Plan {
 public:
  // Throws where `backend` is named and cannot serve it.
  void Add(const AttentionSpec& spec, std::optional<AttnBackend> backend = std::nullopt) {
    std::vector<Wish> wishes;
    if (backend)
      wishes.push_back({SelectionSource::kRequest, *backend, "", "", std::nullopt, true});
    const Selection selection = Select(spec, wishes, BackendRegistry::Default(), QueryCpu());
    AttentionSlot& slot = plan_[static_cast<size_t>(spec.role)].slots.emplace_back();
    slot.id = selection.granted.backend;
    slot.backend = BackendRegistry::Default().Find(selection.granted.backend)->backend;
    const std::unique_ptr<AttentionMetadataBuilder> builder = slot.backend->MakeBuilder();
    MetadataRequest request;
    request.spec = spec;
    if (builder) slot.metadata = builder->Build(request);
  }
  const AttentionPlan* get() const { return &plan_; }
  std::string Name(AttentionRole role) const {
    return std::string(AttnBackendName(plan_[static_cast<size_t>(role)].slots.front().id));
  }

 private:
  AttentionPlan plan_;
};

ScopedForwardContext Enter(const Plan& plan) {
  ForwardContext context;
  context.attn_metadata = plan.get();
  return ScopedForwardContext(context);
}

// At the end of each step of a job, on the engine's thread: the clock, and how long that thread was
// in kernels until then.
class StepClock final : public Observer {
 public:
  void OnStep(const std::string&, double) override {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    ends_.push_back(
        {{"clock", std::chrono::duration<double>(now).count()}, {"kernels", KernelSeconds()}});
  }
  // Since it was last asked; the engine is idle.
  Json Take() { return std::exchange(ends_, Json::array()); }

 private:
  Json ends_ = Json::array();
};

class Bench {
 public:
  Json Answer(const Json& request) {
    static const std::map<std::string, Json (Bench::*)(const Json&)> kHandlers = {
        {"threads", &Bench::Threads},
        {"auto_dtype", &Bench::AutoDType},
        {"level", &Bench::Level},
        {"gemm_rate", &Bench::GemmRate},
        {"load_transformer", &Bench::LoadTransformer},
        {"read_files", &Bench::ReadFiles},
        {"transformer_forward", &Bench::TransformerForward},
        {"forward_rows", &Bench::ForwardRows},
        {"load_text_encoder", &Bench::LoadTextEncoder},
        {"encode_text", &Bench::EncodeText},
        {"load_vae", &Bench::LoadVae},
        {"vae_decode", &Bench::VaeDecode},
        {"load_pipeline", &Bench::LoadPipeline},
        {"job", &Bench::Job},
    };
    const auto handler = kHandlers.find(request.at("do").get<std::string>());
    if (handler == kHandlers.end()) return {{"error", "unknown 'do'"}};
    return (this->*handler->second)(request);
  }

 private:
  Json Threads(const Json& request) {
    threads_ = request.at("count").get<int>();
    SetIntraOpThreads(threads_);
    return Json::object();
  }

  // Of transformers and text encoders, as a server on this CPU takes it.
  Json AutoDType(const Json&) { return {{"dtype", Name(ParseDType("auto", QueryCpu()))}}; }

  Json Level(const Json&) { return {{"level", std::string(CpuIsaName(CurrentCpuIsa()))}}; }

  Json GemmRate(const Json& request) {
    const GemmShape shape{request.at("m"), request.at("k"), request.at("n")};
    const std::string dtype = request.at("dtype");
    auto& rates = gemm_rates_[{shape.rows, shape.in, shape.out, dtype}];
    if (!rates) rates = std::make_unique<GemmRates>(ScalarType(dtype), shape);
    return {{"rate", rates->Best()}};
  }

  // Sealed, as a server's models are. `digests`: a file that remembers what was hashed, as a
  // server's state folder does; without one the files are hashed.
  Json LoadTransformer(const Json& request) {
    transformer_.reset();
    DigestCache digests(request.value("digests", std::string()));
    const PeakMemory peak;
    const ModelFolder folder(request.at("folder").get<std::string>(), {"", &digests});
    const double seconds = Seconds(
        [&] {
          transformer_ = WanTransformer::Load(folder, ScalarType(request.at("dtype")), at::kCPU,
                                              Numerics(request));
          folder.Seal();
        },
        1);
    digests.Save();
    return {{"seconds", seconds}, {"peak_bytes", peak.Bytes()}};
  }

  // The least that any loader does: their bytes to fresh memory.
  Json ReadFiles(const Json& request) {
    malloc_trim(0);
    const double seconds = Seconds(
        [&] {
          std::vector<kernels::Buffer<char>> copies;
          for (const Json& name : request.at("files")) {
            const ReadOnlyFile file = OpenLooseFile(name.get<std::string>());
            const auto bytes = static_cast<int64_t>(file.size());
            char* const to = copies.emplace_back(kernels::Allocate<char>(bytes)).get();
            ParallelFor(bytes, 1 << 20, [&](int64_t begin, int64_t end) {
              file.ReadAt(begin, to + begin, end - begin);
            });
          }
        },
        1);
    return {{"seconds", seconds}};
  }

  // The text is embedded in each forward, as the peer does; a job does that once.
  Json TransformerForward(const Json& request) {
    const at::Tensor latents = ReadTensor(request.at("latents")).to(transformer_->dtype());
    const at::Tensor context = ReadTensor(request.at("context")).to(transformer_->dtype());
    const at::Tensor timestep = at::full({1}, request.at("timestep").get<int64_t>(), at::kLong);
    const auto grid = transformer_->TokenGrid(latents.sizes());
    Plan plan;
    plan.Add(transformer_->SelfSpec(grid));
    plan.Add(transformer_->CrossSpec(grid, context.size(1)));
    const ScopedForwardContext scope = Enter(plan);
    at::Tensor out;
    const double seconds = Seconds(
        [&] { out = transformer_->Forward(latents, timestep, transformer_->EncodeText(context)); },
        request.at("repeat"));
    WriteTensor(out, request.at("out"));
    return {{"seconds", seconds},
            {"shape", out.sizes().vec()},
            {"backend", plan.Name(AttentionRole::kSelf)}};
  }

  // Forwards of several rows each, in turns: for each the least of its seconds. A forward names the
  // self-attention backend of each row; "": the automatic one. So many `passes` after each other
  // are a job's, which is at a step of its own.
  Json ForwardRows(const Json& request) {
    const at::Tensor latents = ReadTensor(request.at("latents")).to(transformer_->dtype());
    const at::Tensor context = ReadTensor(request.at("context")).to(transformer_->dtype());
    const auto forwards = request.at("forwards").get<std::vector<std::vector<std::string>>>();
    const int64_t passes = request.value("passes", 1);
    const Plan automatic = RowPlan(latents, context, "");
    const ScopedForwardContext scope = Enter(automatic);
    const TextContext text = transformer_->EncodeText(context);
    std::map<std::string, Plan> plans;
    std::vector<std::vector<RowSet>> sets(forwards.size());
    for (size_t i = 0; i < forwards.size(); ++i) {
      for (const std::string& backend : forwards[i]) {
        const auto plan = plans.try_emplace(backend, RowPlan(latents, context, backend)).first;
        const int64_t row = std::ssize(sets[i]);
        RowSet set = row % passes == 0 ? RowSet{latents.clone(),
                                                at::full({1}, 999 - row / passes, at::kLong), &text}
                                       : sets[i].back();
        set.plan = plan->second.get();
        sets[i].push_back(set);
      }
    }
    std::vector<double> least(sets.size(), INFINITY), busy = least;
    for (int round = 0; round <= request.at("repeat").get<int>(); ++round) {
      for (size_t i = 0; i < sets.size(); ++i) {
        const double before = CpuSeconds();
        const double seconds = Seconds([&] { transformer_->Forward(sets[i]); }, 1);
        if (round == 0) continue;
        least[i] = std::min(least[i], seconds);
        busy[i] = std::min(busy[i], CpuSeconds() - before);
      }
    }
    return {{"seconds", least}, {"cpu_seconds", busy}};
  }

  Plan RowPlan(const at::Tensor& latents, const at::Tensor& context, const std::string& backend) {
    const auto grid = transformer_->TokenGrid(latents.sizes());
    Plan plan;
    plan.Add(
        transformer_->SelfSpec(grid),
        backend.empty() ? std::nullopt : std::optional(CoerceAttnBackend(backend, "forwards")));
    plan.Add(transformer_->CrossSpec(grid, context.size(1)));
    return plan;
  }

  Json LoadTextEncoder(const Json& request) {
    text_encoder_ = Umt5Encoder::Load(ModelFolder(request.at("folder").get<std::string>()),
                                      ScalarType(request.at("dtype")), at::kCPU, Numerics(request));
    return Json::object();
  }

  // `tokens` real ids of a prompt, without padding.
  Json EncodeText(const Json& request) {
    const at::Tensor ids = ReadTensor(request.at("ids")).to(at::kLong);
    const at::Tensor mask = at::ones_like(ids);
    Plan plan;
    plan.Add(text_encoder_->Spec(ids.size(1)));
    const ScopedForwardContext scope = Enter(plan);
    at::Tensor out;
    const double seconds =
        Seconds([&] { out = text_encoder_->Forward(ids, mask); }, request.at("repeat"));
    WriteTensor(out, request.at("out"));
    return {{"seconds", seconds}, {"shape", out.sizes().vec()}};
  }

  Json LoadVae(const Json& request) {
    vae_ = WanVaeDecoder::Load(ModelFolder(request.at("folder").get<std::string>()),
                               ScalarType(request.at("dtype")), at::kCPU, Numerics(request));
    return Json::object();
  }

  // Frames leave as they are decoded; they are kept where `out` names a file for them.
  Json VaeDecode(const Json& request) {
    const at::Tensor latents = ReadTensor(request.at("latents")).to(vae_->dtype());
    const bool keep = request.contains("out");
    Plan plan;
    plan.Add(vae_->Spec(latents.size(3), latents.size(4)));
    const ScopedForwardContext scope = Enter(plan);
    std::vector<at::Tensor> chunks;
    const PeakMemory peak;
    const double seconds = Seconds(
        [&] {
          chunks.clear();
          const auto decoding = vae_->Begin(latents);
          while (!decoding->done()) {
            decoding->Next([&](const WanVaeDecoder::Part& part) {
              if (keep) chunks.push_back(part.frames);
            });
          }
        },
        request.at("repeat"));
    const int64_t bytes = peak.Bytes();
    if (keep) WriteTensor(at::cat(chunks, 2), request.at("out"));
    return {{"seconds", seconds}, {"peak_bytes", bytes}};
  }

  Json LoadPipeline(const Json& request) {
    EngineOptions options;
    options.model_repository = request.at("repository").get<std::string>();
    options.device = "cpu";
    options.dtype = request.at("dtype").get<std::string>();
    options.threads = threads_;
    options.linear = Numerics(request);
    engine_.reset();
    engine_ = Engine::Create(options, &steps_, &logger_);
    return Json::object();
  }

  Json Job(const Json& request) {
    GenerationRequest job;
    job.model = request.value("model", "");
    job.prompt = request.at("prompt").get<std::string>();
    job.seed = request.at("seed").get<int64_t>();
    job.num_inference_steps = request.at("steps").get<int64_t>();
    job.guidance_scale = request.at("guidance").get<double>();
    job.height = request.at("height").get<int64_t>();
    job.width = request.at("width").get<int64_t>();
    job.num_frames = request.at("frames").get<int64_t>();
    if (request.contains("linear")) job.numerics.linear = Numerics(request);
    job.formats = {ArtifactFormat::kNpy};
    JobSnapshot snapshot;
    steps_.Take();
    const double seconds = Seconds([&] { snapshot = RunJob(job); }, 1);
    if (snapshot.state != JobState::kSucceeded) {
      return {{"error", snapshot.error ? snapshot.error->message : "the job did not succeed"}};
    }
    WriteFrames(snapshot.id, request.at("out"));
    return {{"seconds", seconds}, {"step_ends", steps_.Take()}};
  }

  JobSnapshot RunJob(const GenerationRequest& request) {
    Engine::SubmitResult submitted = engine_->Submit(request);
    if (const Error* error = std::get_if<Error>(&submitted)) throw *error;
    engine_->WaitIdle(std::chrono::minutes(10));
    return *engine_->jobs().Get(std::get<JobSnapshot>(submitted).id);
  }

  // The .npy file without its header: float32 [frames, height, width, 3] in [0, 1].
  void WriteFrames(const std::string& id, const std::string& path) {
    const std::string bytes = ReadAll(*engine_->jobs().GetArtifact(id, ArtifactFormat::kNpy));
    const size_t header =
        10 + static_cast<uint8_t>(bytes.at(8)) + 256 * static_cast<uint8_t>(bytes.at(9));
    WriteBytes(path, bytes.data() + header, bytes.size() - header);
  }

  int threads_ = 1;
  std::map<std::tuple<int64_t, int64_t, int64_t, std::string>, std::unique_ptr<GemmRates>>
      gemm_rates_;
  std::unique_ptr<WanTransformer> transformer_;
  std::unique_ptr<Umt5Encoder> text_encoder_;
  std::unique_ptr<WanVaeDecoder> vae_;
  StepClock steps_;
  Logger logger_;
  std::unique_ptr<Engine> engine_;
};

// Before the first call into LibTorch, which chooses its own instructions then.
void PinTo(int argc, char** argv) {
  CpuIsa isa = CpuIsa::kAuto;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto named =
        argument.starts_with("--cpu_isa=") ? CpuIsaFromName(argument.substr(10)) : std::nullopt;
    if (!named) throw Error(StatusCode::kInvalidArgument, argument + ": wanted --cpu_isa=LEVEL");
    isa = *named;
  }
  PinCpuIsa(isa);
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  denoised::KeepFreedMemory();
  denoised::PinTo(argc, argv);
  const c10::InferenceMode inference;
  denoised::Bench bench;
  denoised::AnswerLines(bench);
}
