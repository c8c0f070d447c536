// generate, submit, jobs, watch, cancel, fetch: jobs on a server.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <memory>

#include "denoised/v1/generation.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/generation_flags.h"
#include "server/cli/output.h"

namespace denoised::cli {
namespace {

using Stub = v1::GenerationService::Stub;

std::unique_ptr<Stub> MakeStub(const CommonOptions& options) {
  return v1::GenerationService::NewStub(Connect(options.server));
}

std::vector<Flag> WithCommon(std::vector<Flag> flags, CommonOptions* options) {
  for (Flag& flag : CommonFlags(options, Uses::kServer)) flags.push_back(std::move(flag));
  return flags;
}

Flag OutputFlag(std::string* path) {
  return {
      "output",
      "FILE",
      "",
      "Where to write; the ending chooses the format: .mp4, .gif, .png (first frame, or a sheet "
      "of frames), .npy (float32 frames in 0..1), .safetensors (final latents). Needed.",
      SetString(path),
      "o"};
}

std::string NeededOutput(const std::string& path) {
  if (path.empty()) throw UsageError("-o FILE is needed");
  return path;
}

// A chunk as it is printed: its bytes are in the file.
v1::ArtifactChunk WithoutData(v1::ArtifactChunk chunk) {
  chunk.clear_data();
  return chunk;
}

void PrintWritten(const OutputFile& file) {
  std::printf("wrote %s (%llu bytes)\n", file.path().c_str(),
              static_cast<unsigned long long>(file.size()));
}

// Reads a Generate stream to its end; the last job state comes back.
v1::Job FollowGenerate(grpc::ClientReader<v1::GenerateEvent>* reader, bool json, OutputFile* file) {
  Progress progress(/*quiet=*/json);
  v1::Job last;
  for (v1::GenerateEvent event; reader->Read(&event);) {
    if (event.has_job()) {
      last = event.job();
      progress.Show(last);
    } else if (event.has_chunk()) {
      file->Write(event.chunk().data());
      *event.mutable_chunk() = WithoutData(std::move(*event.mutable_chunk()));
    }
    if (json) PrintJson(event);
  }
  progress.Finish();
  return last;
}

int Generate(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions options;
  v1::GenerationRequest request;
  std::string path;
  std::vector<Flag> flags = GenerationFlags(&request);
  flags.insert(flags.begin(), OutputFlag(&path));
  flags = WithCommon(std::move(flags), &options);
  const auto rest = ParseCommand(command, flags, options, arguments, 1, 1);
  if (!rest) return kExitOk;
  request.set_prompt(rest->front());
  request.add_formats(FormatOfPath(NeededOutput(path)));
  OutputFile file(path);
  grpc::ClientContext context;
  const auto stub = MakeStub(options);
  const auto reader = stub->Generate(&context, request);
  const v1::Job job = FollowGenerate(reader.get(), options.json, &file);
  CheckStatus(reader->Finish(), options.server);
  file.Commit();
  if (!options.json) {
    PrintReceipt(job);
    PrintWritten(file);
  }
  return kExitOk;
}

Flag FormatsFlag(v1::GenerationRequest* request) {
  return {"formats", "LIST", "mp4", "Results to make, by comma: mp4, gif, png, npy, safetensors.",
          [request](const std::string& text) {
            for (size_t begin = 0; begin <= text.size();) {
              const size_t comma = std::min(text.find(',', begin), text.size());
              request->add_formats(FormatOfPath("." + text.substr(begin, comma - begin)));
              begin = comma + 1;
            }
          }};
}

int Submit(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions options;
  v1::GenerationRequest request;
  std::vector<Flag> flags = GenerationFlags(&request);
  flags.push_back(FormatsFlag(&request));
  flags = WithCommon(std::move(flags), &options);
  const auto rest = ParseCommand(command, flags, options, arguments, 1, 1);
  if (!rest) return kExitOk;
  request.set_prompt(rest->front());
  const v1::Job job = Call(MakeStub(options), &Stub::SubmitJob, request, options.server);
  if (options.json) {
    PrintJson(job);
  } else {
    std::printf("%s\n", job.id().c_str());
  }
  return kExitOk;
}

v1::JobState StateFromName(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  v1::JobState state;
  if (!v1::JobState_Parse(name, &state)) {
    throw UsageError("--state is QUEUED, RUNNING, SUCCEEDED, FAILED or CANCELLED, got '" + name +
                     "'");
  }
  return state;
}

// Pages until `limit` jobs came.
std::vector<v1::Job> FetchJobs(const CommonOptions& options, v1::ListJobsRequest request,
                               int64_t limit) {
  const auto stub = MakeStub(options);
  std::vector<v1::Job> jobs;
  do {
    const auto left = limit - static_cast<int64_t>(jobs.size());
    request.set_page_size(static_cast<int>(std::min<int64_t>(left, 100)));
    const auto page = Call(stub, &Stub::ListJobs, request, options.server);
    if (options.json) PrintJson(page);
    jobs.insert(jobs.end(), page.jobs().begin(), page.jobs().end());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() && static_cast<int64_t>(jobs.size()) < limit);
  return jobs;
}

int Jobs(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions options;
  v1::ListJobsRequest request;
  int64_t limit = 20;
  const std::vector<Flag> flags =
      WithCommon({{"state", "STATE", "", "Only jobs in this state.",
                   [&](const std::string& name) { request.set_state(StateFromName(name)); }},
                  {"limit", "N", "20", "At most this many, newest first.",
                   SetInt("limit", 1, 1000000, [&](int64_t n) { limit = n; })}},
                 &options);
  if (!ParseCommand(command, flags, options, arguments, 0, 0)) return kExitOk;
  const std::vector<v1::Job> jobs = FetchJobs(options, request, limit);
  if (options.json) return kExitOk;
  std::vector<std::vector<std::string>> rows = {{"ID", "STATE", "STAGE", "STEPS", "PROMPT"}};
  for (const v1::Job& job : jobs) {
    rows.push_back({job.id(), v1::JobState_Name(job.state()), job.stage(),
                    std::to_string(job.step()) + "/" + std::to_string(job.num_steps()),
                    OneLine(job.prompt(), 50)});
  }
  PrintTable(rows);
  return kExitOk;
}

// Watches until the job's end, picking up after a broken connection where it broke.
v1::Job WatchToEnd(const CommonOptions& options, const std::string& job_id) {
  constexpr int kAttempts = 5;
  const auto stub = MakeStub(options);
  Progress progress(/*quiet=*/options.json);
  v1::WatchJobRequest request;
  request.set_job_id(job_id);
  v1::Job last;
  for (int attempt = 1;; ++attempt) {
    grpc::ClientContext context;
    const auto reader = stub->WatchJob(&context, request);
    for (v1::Job job; reader->Read(&job); attempt = 1) {
      last = job;
      request.set_after_sequence(job.sequence());
      progress.Show(job);
      if (options.json) PrintJson(job);
    }
    const grpc::Status status = reader->Finish();
    const bool broken = status.error_code() == grpc::StatusCode::UNAVAILABLE;
    if (broken && request.after_sequence() > 0 && attempt < kAttempts) continue;
    progress.Finish();
    CheckStatus(status, options.server);
    return last;
  }
}

int Watch(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions options;
  const auto rest = ParseCommand(command, WithCommon({}, &options), options, arguments, 1, 1);
  if (!rest) return kExitOk;
  const v1::Job job = WatchToEnd(options, rest->front());
  if (job.state() != v1::SUCCEEDED) {
    throw CommandError("the job ended as " + v1::JobState_Name(job.state()) + ": " +
                       OneLine(job.error().message(), 500));
  }
  if (!options.json) PrintReceipt(job);
  return kExitOk;
}

int Cancel(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions options;
  const auto rest = ParseCommand(command, WithCommon({}, &options), options, arguments, 1, 1);
  if (!rest) return kExitOk;
  v1::CancelJobRequest request;
  request.set_job_id(rest->front());
  const v1::Job job = Call(MakeStub(options), &Stub::CancelJob, request, options.server);
  if (options.json) {
    PrintJson(job);
  } else {
    std::printf("cancelling %s\n", job.id().c_str());
  }
  return kExitOk;
}

int Fetch(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions options;
  std::string path;
  const std::vector<Flag> flags = WithCommon({OutputFlag(&path)}, &options);
  const auto rest = ParseCommand(command, flags, options, arguments, 1, 1);
  if (!rest) return kExitOk;
  v1::FetchArtifactRequest request;
  request.set_job_id(rest->front());
  request.set_format(FormatOfPath(NeededOutput(path)));
  OutputFile file(path);
  const auto stub = MakeStub(options);
  grpc::ClientContext context;
  const auto reader = stub->FetchArtifact(&context, request);
  for (v1::ArtifactChunk chunk; reader->Read(&chunk);) {
    file.Write(chunk.data());
    if (options.json) PrintJson(WithoutData(chunk));
  }
  CheckStatus(reader->Finish(), options.server);
  file.Commit();
  if (!options.json) PrintWritten(file);
  return kExitOk;
}

}  // namespace

std::vector<Command> JobCommands() {
  return {
      {"generate", "PROMPT -o FILE", "Makes a video from a prompt and writes it to a file.",
       Generate},
      {"submit", "PROMPT", "Queues a job and prints its id; it goes on without this client.",
       Submit},
      {"jobs", "", "Lists jobs, newest first.", Jobs},
      {"watch", "ID", "Follows a job to its end; exit 1 where it does not succeed.", Watch},
      {"cancel", "ID", "Asks a job to stop; it does within one step.", Cancel},
      {"fetch", "ID -o FILE", "Writes a result of a job that succeeded.", Fetch},
  };
}

}  // namespace denoised::cli
