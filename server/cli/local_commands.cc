// run and attend: without a server, in this process.
#include <array>
#include <cstdio>
#include <functional>
#include <utility>

#include "backends/cpu_isa.h"
#include "runtime/engine.h"
#include "runtime/log.h"
#include "runtime/pipelines/attend.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/generation_flags.h"
#include "server/cli/job_changes.h"
#include "server/cli/output.h"
#include "server/cli/output_file.h"
#include "server/cli/preview_file.h"
#include "server/cli/progress.h"
#include "server/cli/prompt.h"
#include "server/config.h"
#include "server/convert.h"
#include "server/repository_path.h"

namespace denoised::cli {
namespace {

JobSnapshot FollowJob(JobStore& jobs, const std::string& job_id, bool json,
                      const PreviewFile& preview) {
  Progress progress(/*quiet=*/json);
  std::shared_ptr<const JobPreview> shown;
  JobChanges changes(
      [&](std::function<void()> wake) { return jobs.Watch(job_id, std::move(wake)); });
  while (true) {
    changes.Wait();
    const JobSnapshot job = jobs.Get(job_id).value();
    v1::Job message = ToProto(job);
    if (job.preview && job.preview != shown) *message.mutable_preview() = ToProto(*job.preview);
    shown = job.preview;
    preview.Take(&message);
    progress.Show(message);
    if (json) PrintJson(message);
    if (IsTerminal(job.state)) return job;
  }
}

struct RunOptions {
  CommonOptions common;
  EngineOptions engine;
  CpuIsa cpu_isa = CpuIsa::kAuto;
  bool model_repository_given = false;
  OutputChoice output;
  std::string prompt_file, preview_path;
  v1::GenerationRequest request;
};

Flag AdmitUnmeasuredFlag(bool* target) {
  return {"admit_unmeasured", "", "false",
          "Let attention kernels serve that have not run on a device yet.",
          SetBool("admit_unmeasured", target)};
}

std::vector<Flag> RunFlags(RunOptions* options) {
  EngineOptions* engine = &options->engine;
  std::vector<Flag> flags = OutputFlags(&options->output);
  flags.push_back(PromptFileFlag(&options->prompt_file));
  flags.push_back(PreviewFlag(&options->preview_path));
  const std::vector<Flag> own = {
      {"model_repository", "DIR", engine->model_repository,
       "Folder of model folders in diffusers layout, or one such folder. Unset: model_repository "
       "in the working folder, else the one installed with the program.",
       [options](const std::string& path) {
         options->engine.model_repository = path;
         options->model_repository_given = true;
       }},
      {"device", "DEVICE", engine->device, "auto, cpu or cuda:N.",
       SetDevice("device", &engine->device)},
      {"dtype", "DTYPE", engine->dtype, "auto, float32 or bfloat16.",
       SetChoice("dtype", {"auto", "float32", "bfloat16"}, &engine->dtype)},
      VaeDtypeFlag(&engine->vae_dtype),
      KeepTextEncoderFlag(&engine->keep_text_encoder),
      {"variant", "NAME", "",
       "Which weight files to take where the folder has several, as of `denoised`.",
       SetWord("variant", &engine->variant)},
      {"threads", "N", "0", "CPU threads; 0 = one a physical core.",
       SetInt("threads", 0, 1024, [engine](int64_t n) { engine->threads = static_cast<int>(n); })},
      CpuIsaFlag(&options->cpu_isa),
      MaxMemoryFlag(&engine->max_memory),
      AdmitUnmeasuredFlag(&engine->admit_unmeasured)};
  flags.insert(flags.end(), own.begin(), own.end());
  for (Flag& flag : GenerationFlags(&options->request)) flags.push_back(std::move(flag));
  return flags;
}

// Generates in this process and fills `file`. Throws Error or CommandError.
JobSnapshot RunToEnd(RunOptions* options, const PreviewFile& preview, OutputFile* file) {
  Logger logger(stderr, LogLevel::kWarning);
  Observer nobody;
  const auto engine = Engine::Create(options->engine, &nobody, &logger);
  auto result = engine->Submit(FromProto(v1::GenerationRequest(options->request)));
  if (const Error* error = std::get_if<Error>(&result)) throw *error;
  const std::string job_id = std::get<JobSnapshot>(result).id;
  const JobSnapshot job = FollowJob(engine->jobs(), job_id, options->common.json, preview);
  if (job.state != JobState::kSucceeded) {
    throw CommandError("the job ended as " + std::string(JobStateName(job.state)) +
                       (job.error ? ": " + job.error->message : ""));
  }
  const auto artifact = engine->jobs().GetArtifact(job_id, job.artifacts.front().format);
  if (!artifact) throw CommandError("the result is larger than what this process keeps");
  file->Write(ReadAll(*artifact));
  return job;
}

int Run(const Invocation& call) {
  RunOptions options;
  const auto rest = ParseCommand(call, RunFlags(&options), &options.common, 0, 1);
  if (!rest) return kExitOk;
  RequirePrompt(*rest, options.prompt_file);
  const v1::ArtifactFormat format = FormatOf(options.output);
  if (format != v1::ARTIFACT_FORMAT_UNSPECIFIED) options.request.add_formats(format);
  options.request.set_prompt(ReadPrompt(*rest, options.prompt_file));
  RequireUtf8(options.request);
  if (!options.preview_path.empty()) options.request.mutable_preview();
  options.engine.environment_backend = EnvironmentBackend();
  options.engine.linear = LinearNumericsFromName(options.request.numerics().linear());
  if (!options.model_repository_given) options.engine.model_repository = FindModelRepository();
  PinFromFlag(options.cpu_isa);
  OutputFile file(options.output.path, call.interrupts);
  RefuseJsonAmongBytes(options.common, file);
  const PreviewFile preview(options.preview_path, call.interrupts);
  const JobSnapshot job = RunToEnd(&options, preview, &file);
  file.Commit();
  if (options.common.json) return kExitOk;
  PrintAbout([&] {
    PrintReceipt(ToProto(job), WordsOf(file));
    PrintWritten(file);
  });
  return kExitOk;
}

void PrintAttend(const AttendResult& result, bool json) {
  std::string shape;
  for (int64_t size : result.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  const std::string dtype(DTypeName(result.dtype));
  std::array<char, 32> seconds;
  std::snprintf(seconds.data(), seconds.size(), "%.9f", result.seconds);
  PrintText(json ? "{\"shape\":[" + shape + "],\"dtype\":\"" + dtype +
                       "\",\"seconds\":" + seconds.data() + "}\n"
                 : "o [" + shape + "] " + dtype + " in " + seconds.data() + " s\n");
}

int AttendOnce(const Invocation& call) {
  CommonOptions options;
  AttendRequest request;
  std::string backend, out_path;
  CpuIsa cpu_isa = CpuIsa::kAuto;
  const std::vector<Flag> flags = {
      {"backend", "NAME", "", "Attention backend to run. Needed.", SetString(&backend)},
      {"in", "FILE", "", "safetensors with q, k, v and optionally gate, each [B, S, H, D]. Needed.",
       SetString(&request.in_path)},
      {"out", "FILE", "", "safetensors to write, with o [B, S, H, D]. Needed.",
       SetString(&out_path), "o"},
      {"params", "JSON", "", "The backend's parameters, a JSON object.",
       SetString(&request.parameters_json)},
      {"device", "DEVICE", request.device, "auto, cpu or cuda:N.",
       SetDevice("device", &request.device)},
      CpuIsaFlag(&cpu_isa),
      AdmitUnmeasuredFlag(&request.admit_unmeasured)};
  if (!ParseCommand(call, flags, &options, 0, 0)) return kExitOk;
  if (backend.empty() || request.in_path.empty() || out_path.empty()) {
    throw UsageError("--backend, --in and --out are needed");
  }
  request.backend = CoerceAttnBackend(backend, "backend");
  PinFromFlag(cpu_isa);
  OutputFile file(out_path, call.interrupts);
  request.out_path = file.written_path();
  const AttendResult result = Attend(request);
  file.Commit();
  PrintAttend(result, options.json);
  return kExitOk;
}

}  // namespace

std::vector<Command> LocalCommands() {
  return {
      {"run", "PROMPT -o FILE", "Makes a video in this process, without a server.", Uses::kNeither,
       Run,
       "  denoisectl run \"a red circle moving left\" -o circle.mp4 --seed=7\n"
       "  denoisectl run \"a blue square\" -o square.gif --model_repository=models/wan\n"},
      {"attend", "--backend=NAME --in=FILE --out=FILE",
       "Runs one attention backend on given tensors, for checking it against another program.",
       Uses::kNeither, AttendOnce,
       "  denoisectl attend --backend=SLIDING_TILE_ATTN --in=qkv.safetensors --out=o.safetensors "
       "\\\n"
       "    --params='{\"grid\": [4, 8, 8]}'\n"},
  };
}

}  // namespace denoised::cli
