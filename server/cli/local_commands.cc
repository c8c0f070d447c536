// run and attend: without a server, in this process.
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "backends/cpu_isa.h"
#include "runtime/engine.h"
#include "runtime/log.h"
#include "server/cli/command.h"
#include "server/cli/generation_flags.h"
#include "server/cli/output.h"
#include "server/config.h"
#include "server/convert.h"

namespace denoised::cli {
namespace {

// Blocks on the changes of one job.
class JobChanges {
 public:
  JobChanges(JobStore& jobs, const std::string& job_id)
      : watch_(jobs.Watch(job_id, [this] {
          std::lock_guard lock(mutex_);
          changed_ = true;
          wake_.notify_one();
        })) {}

  void Wait() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return changed_; });
    changed_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool changed_ = true;  // the first look is free
  const std::shared_ptr<void> watch_;
};

JobSnapshot FollowJob(JobStore& jobs, const std::string& job_id, bool json) {
  Progress progress(/*quiet=*/json);
  JobChanges changes(jobs, job_id);
  while (true) {
    changes.Wait();
    const JobSnapshot job = jobs.Get(job_id).value();
    const v1::Job message = ToProto(job);
    progress.Show(message);
    if (json) PrintJson(message);
    if (!IsTerminal(job.state)) continue;
    progress.Finish();
    return job;
  }
}

struct RunOptions {
  CommonOptions common;
  EngineOptions engine;
  CpuIsa cpu_isa = CpuIsa::kAuto;
  std::string path;
  v1::GenerationRequest request;
};

Flag AdmitUnmeasuredFlag(bool* target) {
  return {"admit_unmeasured", "", "false",
          "Let attention kernels serve that have not run on a device yet.",
          SetBool("admit_unmeasured", target)};
}

std::vector<Flag> RunFlags(RunOptions* options) {
  EngineOptions* engine = &options->engine;
  std::vector<Flag> flags = {
      {"output", "FILE", "", "Where to write; the ending chooses the format. Needed.",
       SetString(&options->path), "o"},
      {"model_repository", "DIR", engine->model_repository,
       "Folder of model folders in diffusers layout.", SetString(&engine->model_repository)},
      {"device", "DEVICE", engine->device, "auto, cpu or cuda:N.", SetString(&engine->device)},
      {"dtype", "DTYPE", engine->dtype, "auto, float32 or bfloat16.",
       SetChoice("dtype", {"auto", "float32", "bfloat16"}, &engine->dtype)},
      {"variant", "NAME", "",
       "Which weight files to take where the folder has several, as of `denoised`.",
       SetWord("variant", &engine->variant)},
      {"threads", "N", "0", "CPU threads; 0 = one a physical core.",
       SetInt("threads", 0, 1024, [engine](int64_t n) { engine->threads = static_cast<int>(n); })},
      CpuIsaFlag(&options->cpu_isa),
      AdmitUnmeasuredFlag(&engine->admit_unmeasured)};
  for (Flag& flag : GenerationFlags(&options->request)) flags.push_back(std::move(flag));
  for (Flag& flag : CommonFlags(&options->common, Uses::kNeither)) {
    flags.push_back(std::move(flag));
  }
  return flags;
}

// Generates in this process and fills `file`. Throws Error or CommandError.
JobSnapshot RunToEnd(RunOptions* options, OutputFile* file) {
  Logger logger(stderr, LogLevel::kWarning);
  Observer nobody;
  options->engine.environment_backend = EnvironmentBackend();
  const auto engine = Engine::Create(options->engine, &nobody, &logger);
  auto result = engine->Submit(FromProto(v1::GenerationRequest(options->request)));
  if (const Error* error = std::get_if<Error>(&result)) throw *error;
  const std::string job_id = std::get<JobSnapshot>(result).id;
  const JobSnapshot job = FollowJob(engine->jobs(), job_id, options->common.json);
  if (job.state != JobState::kSucceeded) {
    throw CommandError("the job ended as " + std::string(JobStateName(job.state)) +
                       (job.error ? ": " + job.error->message : ""));
  }
  const auto artifact = engine->jobs().GetArtifact(job_id, job.artifacts.front().format);
  if (!artifact) throw CommandError("the result is larger than what this process keeps");
  file->Write(artifact->bytes);
  return job;
}

int Run(const Command& command, const std::vector<std::string>& arguments) {
  RunOptions options;
  const auto rest = ParseCommand(command, RunFlags(&options), options.common, arguments, 1, 1);
  if (!rest) return kExitOk;
  if (options.path.empty()) throw UsageError("-o FILE is needed");
  options.request.set_prompt(rest->front());
  options.request.add_formats(FormatOfPath(options.path));
  PinCpuIsa(options.cpu_isa);
  OutputFile file(options.path);
  const JobSnapshot job = RunToEnd(&options, &file);
  file.Commit();
  if (!options.common.json) {
    PrintReceipt(ToProto(job));
    std::printf("wrote %s (%llu bytes)\n", file.path().c_str(),
                static_cast<unsigned long long>(file.size()));
  }
  return kExitOk;
}

void PrintAttend(const AttendResult& result, bool json) {
  std::string shape;
  for (int64_t size : result.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  const std::string dtype(DTypeName(result.dtype));
  std::printf(
      json ? "{\"shape\": [%s], \"dtype\": \"%s\", \"seconds\": %.9f}\n" : "o [%s] %s in %.6f s\n",
      shape.c_str(), dtype.c_str(), result.seconds);
}

int AttendOnce(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions options;
  AttendRequest request;
  std::string backend;
  CpuIsa cpu_isa = CpuIsa::kAuto;
  std::vector<Flag> flags = {
      {"backend", "NAME", "", "Attention backend to run. Needed.", SetString(&backend)},
      {"in", "FILE", "", "safetensors with q, k, v and optionally gate, each [B, S, H, D]. Needed.",
       SetString(&request.in_path)},
      {"out", "FILE", "", "safetensors to write, with o [B, S, H, D]. Needed.",
       SetString(&request.out_path), "o"},
      {"params", "JSON", "", "The backend's parameters, a JSON object.",
       SetString(&request.parameters_json)},
      {"device", "DEVICE", request.device, "cpu or cuda:N.", SetString(&request.device)},
      CpuIsaFlag(&cpu_isa),
      AdmitUnmeasuredFlag(&request.admit_unmeasured)};
  for (Flag& flag : CommonFlags(&options, Uses::kNeither)) flags.push_back(std::move(flag));
  if (!ParseCommand(command, flags, options, arguments, 0, 0)) return kExitOk;
  if (backend.empty() || request.in_path.empty() || request.out_path.empty()) {
    throw UsageError("--backend, --in and --out are needed");
  }
  request.backend = CoerceAttnBackend(backend, "backend");
  PinCpuIsa(cpu_isa);
  PrintAttend(Attend(request), options.json);
  return kExitOk;
}

}  // namespace

std::vector<Command> LocalCommands() {
  return {
      {"run", "PROMPT -o FILE", "Makes a video in this process, without a server.", Run},
      {"attend", "--backend=NAME --in=FILE --out=FILE",
       "Runs one attention backend on given tensors, for checking it against another program.",
       AttendOnce},
  };
}

}  // namespace denoised::cli
