// generate, submit, jobs, watch, cancel, fetch: jobs on a server.
#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <memory>

#include "denoised/v1/generation.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/generation_flags.h"
#include "server/cli/job_id.h"
#include "server/cli/output.h"
#include "server/cli/output_file.h"
#include "server/cli/patience.h"
#include "server/cli/preview_file.h"
#include "server/cli/progress.h"
#include "server/cli/prompt.h"
#include "server/cli/text.h"
#include "server/cli/watch_job.h"

namespace denoised::cli {
namespace {

using Stub = v1::GenerationService::Stub;

std::unique_ptr<Stub> MakeStub(const CommonOptions& options) {
  return v1::GenerationService::NewStub(Connect(options.server));
}

std::string FullId(const std::unique_ptr<Stub>& stub, const CommonOptions& options,
                   const std::string& text) {
  return ResolveJobId(text, [&](const std::string& page_token) {
    v1::ListJobsRequest request;
    request.set_page_size(1000);
    request.set_page_token(page_token);
    return Call(stub, &Stub::ListJobs, request, options.server);
  });
}

// Takes the chunks of one result; its `data` is cleared, for printing.
class ChunkWriter {
 public:
  explicit ChunkWriter(OutputFile* file) : file_(file) {}

  void Take(v1::ArtifactChunk* chunk) {
    if (chunk->has_info()) wanted_ = chunk->info().size_bytes();
    file_->Write(chunk->data());
    chunk->clear_data();
  }

  // Throws where the server stopped early.
  void Commit() {
    if (file_->size() != wanted_ || wanted_ == 0) {
      throw CommandError("DATA_LOSS: got " + std::to_string(file_->size()) + " of " +
                         std::to_string(wanted_) + " bytes of the result");
    }
    file_->Commit();
  }

 private:
  OutputFile* const file_;
  uint64_t wanted_ = 0;
};

// Whether a server is known to have the job; for hooks of interrupts too.
using Accepted = std::shared_ptr<std::atomic<bool>>;

// Reads a Generate stream to its end; the last job state comes back.
v1::Job FollowGenerate(grpc::ClientReader<v1::GenerateEvent>* reader, bool json,
                       const PreviewFile& preview, const Accepted& accepted, ChunkWriter* writer) {
  Progress progress(/*quiet=*/json);
  v1::Job last;
  for (v1::GenerateEvent event; reader->Read(&event);) {
    *accepted = true;
    if (event.has_job()) {
      preview.Take(event.mutable_job());
      last = event.job();
      progress.Show(last);
    } else if (event.has_chunk()) {
      writer->Take(event.mutable_chunk());
    }
    if (json) PrintJson(event);
  }
  return last;
}

// For Ctrl-C: what becomes of the job.
const char* InterruptedWords(bool has_key, bool accepted) {
  if (!has_key) return "\ndenoisectl: interrupted; the server cancels the job\n";
  if (accepted) {
    return "\ndenoisectl: interrupted; the job goes on, and the same command again, with its "
           "--idempotency_key, takes its result\n";
  }
  return "\ndenoisectl: interrupted before the server answered; the same command again, with its "
         "--idempotency_key, takes the job's result, or begins it\n";
}

int Generate(const Invocation& call) {
  CommonOptions options;
  v1::GenerationRequest request;
  OutputChoice output;
  std::string prompt_file, preview_path;
  std::vector<Flag> flags = OutputFlags(&output);
  flags.push_back(PromptFileFlag(&prompt_file));
  flags.push_back(PreviewFlag(&preview_path));
  for (Flag& flag : GenerationFlags(&request)) flags.push_back(std::move(flag));
  const auto rest = ParseCommand(call, std::move(flags), &options, 0, 1);
  if (!rest) return kExitOk;
  RequirePrompt(*rest, prompt_file);
  const v1::ArtifactFormat format = FormatOf(output);
  if (format != v1::ARTIFACT_FORMAT_UNSPECIFIED) request.add_formats(format);
  request.set_prompt(ReadPrompt(*rest, prompt_file));
  RequireUtf8(request);
  if (!preview_path.empty()) request.mutable_preview();
  OutputFile file(output.path, call.interrupts);
  RefuseJsonAmongBytes(options, file);
  const PreviewFile preview(preview_path, call.interrupts);
  const auto accepted = std::make_shared<std::atomic<bool>>(false);
  const bool has_key = !request.idempotency_key().empty();
  auto said = call.interrupts->AtEnd(
      [has_key, accepted] { std::fputs(InterruptedWords(has_key, *accepted), stderr); });
  grpc::ClientContext context;
  const auto stub = MakeStub(options);
  const auto reader = stub->Generate(&context, request);
  ChunkWriter writer(&file);
  const v1::Job job = FollowGenerate(reader.get(), options.json, preview, accepted, &writer);
  CheckStatus(reader->Finish(), options.server);
  said.reset();
  writer.Commit();
  if (options.json) return kExitOk;
  PrintAbout([&] {
    PrintReceipt(job, WordsOf(file));
    PrintWritten(file);
  });
  return kExitOk;
}

// People try it here, because generate has it.
Flag NoOutputFlag() {
  return {"output",
          "FILE",
          "",
          "",
          [](const std::string&) {
            throw UsageError(
                "submit writes no file: it prints an ID, and denoisectl fetch ID -o FILE "
                "writes the result (or generate does both)");
          },
          "o"};
}

int Submit(const Invocation& call) {
  CommonOptions options;
  v1::GenerationRequest request;
  std::string prompt_file;
  std::vector<Flag> flags = GenerationFlags(&request);
  flags.push_back(FormatsFlag(&request));
  flags.push_back(PromptFileFlag(&prompt_file));
  flags.push_back(NoOutputFlag());
  const auto rest = ParseCommand(call, std::move(flags), &options, 0, 1);
  if (!rest) return kExitOk;
  request.set_prompt(ReadPrompt(*rest, prompt_file));
  const v1::Job job = Call(MakeStub(options), &Stub::SubmitJob, request, options.server);
  if (options.json) {
    PrintJson(job);
  } else {
    PrintLine(job.id());
  }
  return kExitOk;
}

v1::JobState StateFromName(const std::string& name) {
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  v1::JobState state;
  if (!v1::JobState_Parse(upper, &state) || state == v1::JOB_STATE_UNSPECIFIED) {
    throw UsageError(
        "--state is QUEUED, RUNNING, SUSPENDED, SUCCEEDED, FAILED or CANCELLED, got '" + name +
        "'");
  }
  return state;
}

struct JobList {
  std::vector<v1::Job> jobs;
  bool more = false;
};

// Pages until `limit` jobs came.
JobList FetchJobs(const CommonOptions& options, v1::ListJobsRequest request, int64_t limit) {
  const auto stub = MakeStub(options);
  JobList list;
  do {
    const auto left = limit - static_cast<int64_t>(list.jobs.size());
    request.set_page_size(static_cast<int>(std::min<int64_t>(left, 100)));
    const auto page = Call(stub, &Stub::ListJobs, request, options.server);
    if (options.json) PrintJson(page);
    list.jobs.insert(list.jobs.end(), page.jobs().begin(), page.jobs().end());
    request.set_page_token(page.next_page_token());
    list.more = !page.next_page_token().empty();
  } while (list.more && static_cast<int64_t>(list.jobs.size()) < limit);
  return list;
}

int Jobs(const Invocation& call) {
  CommonOptions options;
  v1::ListJobsRequest request;
  int64_t limit = 20;
  const std::vector<Flag> flags = {
      {"state", "STATE", "",
       "Only jobs in this state: queued, running, suspended, succeeded, failed, cancelled.",
       [&](const std::string& name) { request.set_state(StateFromName(name)); }},
      {"limit", "N", "20", "At most this many, newest first; 1 to 1000000.",
       SetInt("limit", 1, 1000000, [&](int64_t n) { limit = n; })}};
  if (!ParseCommand(call, flags, &options, 0, 0)) return kExitOk;
  const JobList list = FetchJobs(options, request, limit);
  if (options.json) return kExitOk;
  constexpr size_t kPromptColumns = 50;
  std::vector<std::vector<std::string>> rows = {{"ID", "STATE", "STAGE", "STEPS", "PROMPT"}};
  for (const v1::Job& job : list.jobs) {
    rows.push_back({job.id(), v1::JobState_Name(job.state()), job.stage(),
                    std::to_string(job.step()) + "/" + std::to_string(job.num_steps()),
                    OneLine(job.prompt(), kPromptColumns)});
  }
  PrintTable(rows);
  if (list.more) PrintLine("(there are older ones: --limit=N shows more)", stderr);
  return kExitOk;
}

int Watch(const Invocation& call) {
  CommonOptions options;
  std::string preview_path;
  std::chrono::milliseconds patience = std::chrono::seconds(60);
  const auto rest =
      ParseCommand(call, {PreviewFlag(&preview_path), PatienceFlag(&patience)}, &options, 1, 1);
  if (!rest) return kExitOk;
  const PreviewFile preview(preview_path, call.interrupts);
  const auto stub = MakeStub(options);
  const v1::Job job =
      WatchToEnd(stub, options, FullId(stub, options, rest->front()), preview, Patience(patience));
  if (job.state() != v1::SUCCEEDED) {
    throw CommandError("the job ended as " + v1::JobState_Name(job.state()) + ": " +
                       job.error().message());
  }
  if (!options.json) PrintReceipt(job);
  return kExitOk;
}

// A verb on one job, by its ID; what the job is now, or `done` and its ID.
template <typename Request>
int OnJob(const Invocation& call, const char* done,
          grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, v1::Job*)) {
  CommonOptions options;
  const auto rest = ParseCommand(call, {}, &options, 1, 1);
  if (!rest) return kExitOk;
  const auto stub = MakeStub(options);
  Request request;
  request.set_job_id(FullId(stub, options, rest->front()));
  const v1::Job job = Call(stub, method, request, options.server);
  if (options.json) {
    PrintJson(job);
  } else {
    PrintLine(std::string(done) + " " + job.id());
  }
  return kExitOk;
}

int Cancel(const Invocation& call) { return OnJob(call, "cancelling", &Stub::CancelJob); }
int Suspend(const Invocation& call) { return OnJob(call, "suspending", &Stub::SuspendJob); }
int Resume(const Invocation& call) { return OnJob(call, "resumed", &Stub::ResumeJob); }

int Delete(const Invocation& call) {
  CommonOptions options;
  const auto rest = ParseCommand(call, {}, &options, 1, 1);
  if (!rest) return kExitOk;
  const auto stub = MakeStub(options);
  v1::DeleteJobRequest request;
  request.set_job_id(FullId(stub, options, rest->front()));
  const v1::DeleteJobResponse response = Call(stub, &Stub::DeleteJob, request, options.server);
  options.json ? PrintJson(response) : PrintLine("deleted " + request.job_id());
  return kExitOk;
}

// Why there is nothing to fetch, with what to do instead; returns where there is.
void RequireResult(const v1::Job& job, v1::ArtifactFormat format) {
  const std::string name = "job '" + job.id() + "' ";
  if (job.state() == v1::SUSPENDED) {
    throw CommandError("FAILED_PRECONDITION: " + name + "is SUSPENDED; denoisectl resume " +
                       job.id() + " lets it go on");
  }
  if (job.state() == v1::QUEUED || job.state() == v1::RUNNING) {
    throw CommandError("FAILED_PRECONDITION: " + name + "is " + v1::JobState_Name(job.state()) +
                       "; denoisectl watch " + job.id() + " waits for its end");
  }
  if (job.state() != v1::SUCCEEDED) {
    throw CommandError("FAILED_PRECONDITION: " + name + "has no result, it ended as " +
                       v1::JobState_Name(job.state()) + ": " + job.error().message());
  }
  if (job.artifacts().empty()) {
    throw CommandError("NOT_FOUND: the results of " + name +
                       "are no longer kept: newer ones needed the room (--max_artifact_mib)");
  }
  std::string made;
  for (const v1::ArtifactInfo& info : job.artifacts()) {
    if (info.format() == format || format == v1::ARTIFACT_FORMAT_UNSPECIFIED) return;
    made += (made.empty() ? "" : ", ") + FormatName(info.format());
  }
  throw CommandError("NOT_FOUND: " + name + "has no result of format " + FormatName(format) +
                     "; it made " + made + " (submit --formats chooses)");
}

int Fetch(const Invocation& call) {
  CommonOptions options;
  OutputChoice output;
  const auto rest = ParseCommand(call, OutputFlags(&output), &options, 1, 1);
  if (!rest) return kExitOk;
  v1::FetchArtifactRequest request;
  request.set_format(FormatOf(output));
  const auto stub = MakeStub(options);
  request.set_job_id(FullId(stub, options, rest->front()));
  v1::GetJobRequest get;
  get.set_job_id(request.job_id());
  RequireResult(Call(stub, &Stub::GetJob, get, options.server), request.format());
  OutputFile file(output.path, call.interrupts);
  RefuseJsonAmongBytes(options, file);
  ChunkWriter writer(&file);
  grpc::ClientContext context;
  const auto reader = stub->FetchArtifact(&context, request);
  for (v1::ArtifactChunk chunk; reader->Read(&chunk);) {
    writer.Take(&chunk);
    if (options.json) PrintJson(chunk);
  }
  CheckStatus(reader->Finish(), options.server);
  writer.Commit();
  if (!options.json) PrintAbout([&] { PrintWritten(file); });
  return kExitOk;
}

constexpr char kShortIds[] =
    "The first digits of an ID do where no other job's begins with them.\n";

}  // namespace

std::vector<Command> JobCommands() {
  return {
      {"generate", "PROMPT -o FILE", "Makes a video from a prompt and writes it to a file.",
       Uses::kServer, Generate,
       "  denoisectl generate \"a red circle moving left\" -o circle.mp4 --seed=7\n"
       "  denoisectl generate --prompt_file=prompt.txt --steps=30 -o film.gif\n"
       "  denoisectl generate \"a red circle\" -o circle.mp4 --preview=now.png --preview_every=5\n"
       "  denoisectl generate -o cold.png -- \"-5 degrees, snow\"\n"
       "  echo \"a blue square\" | denoisectl generate - -o - --format=mp4 | ffplay -\n"},
      {"submit", "PROMPT", "Queues a job and prints its ID; it goes on without this client.",
       Uses::kServer, Submit,
       "  id=$(denoisectl submit \"a red circle moving left\" --formats=mp4,png)\n"
       "  denoisectl watch $id && denoisectl fetch $id -o circle.png\n"},
      {"jobs", "", "Lists jobs, newest first.", Uses::kServer, Jobs,
       "  denoisectl jobs --state=running\n"},
      {"watch", "ID",
       "Follows a job to its end, also over restarts, with receipt; exit 1 unless it succeeds.",
       Uses::kServer, Watch,
       "  denoisectl watch 63b4\n"
       "  id=$(denoisectl submit \"a square\" --preview_every=2) && denoisectl watch $id "
       "--preview=now.png\n",
       kShortIds},
      {"cancel", "ID", "Asks a job to stop; it does within one step.", Uses::kServer, Cancel,
       "  denoisectl cancel 63b4\n", kShortIds},
      {"suspend", "ID", "Puts a job aside; it keeps what it has reached.", Uses::kServer, Suspend,
       "  denoisectl suspend 63b4\n",
       std::string(kShortIds) +
           "It holds no place in the queue meanwhile; its --time_limit goes on.\n"},
      {"resume", "ID", "Lets a suspended job go on from there.", Uses::kServer, Resume,
       "  denoisectl resume 63b4\n", kShortIds},
      {"delete", "ID", "Forgets an ended job, its results and its key.", Uses::kServer, Delete,
       "  denoisectl delete 63b4\n", kShortIds},
      {"fetch", "ID -o FILE", "Writes a result of a job that succeeded.", Uses::kServer, Fetch,
       "  denoisectl fetch 63b4 -o circle.mp4\n"
       "  denoisectl fetch 63b4 -o - | ffprobe -      (the job's first format)\n",
       std::string(kShortIds) + "The formats that exist are those that the job was submitted with "
                                "(submit --formats; mp4 "
                                "where\nnone was named); another one is answered with the list.\n"},
  };
}

}  // namespace denoised::cli
