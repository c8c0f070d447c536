#include "server/generation_service.h"

#include <algorithm>
#include <utility>

#include "runtime/caught.h"
#include "server/call.h"
#include "server/convert.h"
#include "server/job_stream.h"

namespace denoised {
namespace {

constexpr int kDefaultPageSize = 100;
constexpr int kMaxPageSize = 1000;
// Clients receive at most 4 MiB by default; one job is far smaller than the difference.
constexpr size_t kMaxPageBytes = size_t{3} << 20;
constexpr int kListStep = 16;

using Stream = grpc::ServerWriteReactor<grpc::ByteBuffer>;

Error JobNotFound(const std::string& job_id) {
  return Error(StatusCode::kNotFound, "no job '" + job_id.substr(0, 64) + "'", "job_id",
               "JOB_NOT_FOUND");
}

// Appends jobs of the store's page until the reply is full; false where one was left out.
bool AppendJobs(const JobPage& page, v1::ListJobsResponse* response, size_t* bytes) {
  for (size_t i = 0; i < page.jobs.size(); ++i) {
    v1::Job job = ToProto(page.jobs[i]);
    *bytes += job.ByteSizeLong();
    if (response->jobs_size() > 0 && *bytes > kMaxPageBytes) return false;
    *response->add_jobs() = std::move(job);
    response->set_next_page_token(page.tokens[i]);
  }
  response->set_next_page_token(page.next_page_token);
  return true;
}

// A page ends at its number of jobs or at its number of bytes, whichever comes first. The store is
// asked for a few jobs at a time, so that no more is copied than one reply holds.
v1::ListJobsResponse ListPage(Engine& engine, const v1::ListJobsRequest& request) {
  if (request.page_size() < 0 || request.page_size() > kMaxPageSize) {
    throw InvalidField("page_size", "from 0 to 1000, got " + std::to_string(request.page_size()));
  }
  const int size = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
  v1::ListJobsResponse response;
  response.set_next_page_token(request.page_token());
  size_t bytes = 0;
  do {
    const int take = std::min(kListStep, size - response.jobs_size());
    const JobPage page = engine.ListJobs(FromProto(request.state()), static_cast<size_t>(take),
                                         response.next_page_token());
    if (!AppendJobs(page, &response, &bytes)) break;
  } while (response.jobs_size() < size && !response.next_page_token().empty());
  return response;
}

std::shared_ptr<const Artifact> FindArtifact(JobStore& jobs, const JobSnapshot& job,
                                             const v1::FetchArtifactRequest& request) {
  if (job.state != JobState::kSucceeded) {
    throw Error(StatusCode::kFailedPrecondition,
                "job '" + job.id + "' is " + std::string(JobStateName(job.state)) +
                    "; results come with SUCCEEDED",
                "job_id", IsTerminal(job.state) ? "JOB_HAS_NO_RESULT" : "JOB_NOT_FINISHED");
  }
  if (job.artifacts.empty()) throw ResultsAreGone(job.id);
  auto format = FromProto(request.format());
  if (!format) format = job.artifacts.front().format;
  auto artifact = jobs.GetArtifact(job.id, *format);
  if (!artifact) {
    throw Error(
        StatusCode::kNotFound,
        "job '" + job.id + "' has no result of format " + std::string(ArtifactFormatName(*format)),
        "format", "ARTIFACT_NOT_FOUND");
  }
  if (request.offset() > artifact->size()) {
    throw Error(StatusCode::kOutOfRange,
                "offset: at most " + std::to_string(artifact->size()) + ", got " +
                    std::to_string(request.offset()),
                "offset", "INVALID_OFFSET");
  }
  return artifact;
}

JobSnapshot FindJob(Engine& engine, const std::string& job_id) {
  auto job = engine.Job(job_id);
  if (!job) throw JobNotFound(job_id);
  return *std::move(job);
}

const JobSnapshot& JobOf(const Engine::SubmitResult& result) {
  if (const Error* error = std::get_if<Error>(&result)) throw *error;
  return std::get<JobSnapshot>(result);
}

v1::Job Cancel(Engine& engine, const std::string& id) {
  switch (engine.Cancel(id)) {
    case Engine::CancelResult::kNotFound:
      throw JobNotFound(id);
    case Engine::CancelResult::kAlreadyFinished:
      throw Error(StatusCode::kFailedPrecondition, "job '" + id + "' has already ended", "job_id",
                  "JOB_FINISHED");
    case Engine::CancelResult::kNotKept:
      throw Error(StatusCode::kResourceExhausted,
                  "job '" + id + "' is being stopped, but the disk does not take that now",
                  "job_id", "DISK");
    case Engine::CancelResult::kCancelling:
      break;
  }
  return ToProto(FindJob(engine, id));
}

// A job that is the call's own ends with it, at its deadline too. Under a key the job may be an
// earlier call's: it belongs to nobody alone, and the call's end is not its end.
void BelongTo(const std::optional<std::chrono::steady_clock::time_point>& call_deadline,
              GenerationRequest* request) {
  request->belongs_to_call = request->idempotency_key.empty();
  if (!request->belongs_to_call || !call_deadline) return;
  request->deadline = std::min(request->deadline.value_or(*call_deadline), *call_deadline);
}

// After a verb that may refuse.
v1::Job NowOrRefusal(Engine& engine, const std::string& id, const std::optional<Error>& refusal) {
  if (refusal) throw *refusal;
  return ToProto(FindJob(engine, id));
}

}  // namespace

grpc::ServerUnaryReactor* GenerationService::SubmitJob(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in,
                                                       grpc::ByteBuffer* out) {
  // No thread waits for the disk: a flood of submits shares its writes.
  return AnswerLater<v1::GenerationRequest>(
      context, with_.pool, in, out, with_.metrics, "SubmitJob",
      [this](v1::GenerationRequest&& request, auto reply) {
        with_.gate->Require().Submit(FromProto(std::move(request)),
                                     [reply = std::move(reply)](Engine::SubmitResult result) {
                                       reply([&] { return ToProto(JobOf(result)); });
                                     });
      });
}

grpc::ServerUnaryReactor* GenerationService::GetJob(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* in,
                                                    grpc::ByteBuffer* out) {
  return AnswerUnary<v1::GetJobRequest>(
      context, in, out, with_.metrics, "GetJob", [this](const v1::GetJobRequest& request) {
        const JobSnapshot job = FindJob(with_.gate->Require(), request.job_id());
        v1::Job message = ToProto(job);
        if (job.preview) *message.mutable_preview() = ToProto(*job.preview);
        return message;
      });
}

grpc::ServerUnaryReactor* GenerationService::ListJobs(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* in,
                                                      grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ListJobsRequest>(context, in, out, with_.metrics, "ListJobs",
                                          [this](const v1::ListJobsRequest& request) {
                                            return ListPage(with_.gate->Require(), request);
                                          });
}

grpc::ServerUnaryReactor* GenerationService::CancelJob(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in,
                                                       grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::CancelJobRequest>(context, with_.pool, in, out, with_.metrics,
                                              "CancelJob", [this](v1::CancelJobRequest&& request) {
                                                return Cancel(with_.gate->Require(),
                                                              request.job_id());
                                              });
}

grpc::ServerUnaryReactor* GenerationService::SuspendJob(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* in,
                                                        grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::SuspendJobRequest>(
      context, with_.pool, in, out, with_.metrics, "SuspendJob",
      [this](v1::SuspendJobRequest&& request) {
        Engine& engine = with_.gate->Require();
        return NowOrRefusal(engine, request.job_id(), engine.Suspend(request.job_id()));
      });
}

grpc::ServerUnaryReactor* GenerationService::ResumeJob(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in,
                                                       grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::ResumeJobRequest>(
      context, with_.pool, in, out, with_.metrics, "ResumeJob",
      [this](v1::ResumeJobRequest&& request) {
        Engine& engine = with_.gate->Require();
        return NowOrRefusal(engine, request.job_id(), engine.Resume(request.job_id()));
      });
}

grpc::ServerUnaryReactor* GenerationService::DeleteJob(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in,
                                                       grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::DeleteJobRequest>(
      context, with_.pool, in, out, with_.metrics, "DeleteJob",
      [this](v1::DeleteJobRequest&& request) {
        if (const auto refusal = with_.gate->Require().Delete(request.job_id())) throw *refusal;
        return v1::DeleteJobResponse();
      });
}

Stream* GenerationService::WatchJob(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* in) {
  const CallTimer timer(context, with_.metrics, "WatchJob");
  return StartStream(timer, [&] {
    Engine& engine = with_.gate->Require();
    const auto stream = std::make_shared<WatchStream>(timer, &engine, with_.watches);
    stream->Hold();
    stream->Open([&] {
      v1::WatchJobRequest request;
      ParseMessage(*in, &request);
      FindJob(engine, request.job_id());
      if (engine.Pressure().step >= MemoryStep::kShedWatchers) throw ComeBackToWatch();
      stream->Keep(with_.open_calls->Enter(context->peer()));
      stream->Keep(with_.watchers->Enter(stream));
      stream->Follow(request.job_id(), request.after_sequence());
    });
    return stream.get();
  });
}

Stream* GenerationService::FetchArtifact(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* in) {
  const CallTimer timer(context, with_.metrics, "FetchArtifact");
  return StartStream(timer, [&] {
    Engine& engine = with_.gate->Require();
    const auto stream = std::make_shared<FetchStream>(timer, &engine);
    stream->Hold();
    stream->Open([&] {
      v1::FetchArtifactRequest request;
      ParseMessage(*in, &request);
      auto artifact = FindArtifact(engine.jobs(), FindJob(engine, request.job_id()), request);
      stream->Keep(with_.open_calls->Enter(context->peer()));
      stream->Send(request.job_id(), std::move(artifact), request.offset());
    });
    return stream.get();
  });
}

Stream* GenerationService::Generate(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* in) {
  const CallTimer timer(context, with_.metrics, "Generate");
  return StartStream(timer, [&] {
    Engine& engine = with_.gate->Require();
    const auto stream = std::make_shared<GenerateStream>(timer, &engine, with_.watches);
    stream->Keep(with_.open_calls->Enter(context->peer()));
    stream->Hold();
    const auto deadline = SteadyDeadline(context->deadline());
    const auto submit = [stream, &engine, deadline, bytes = *in](const WorkPool::Room& room) {
      const auto refused = Caught([&] {
        v1::GenerationRequest message;
        ParseMessage(bytes, &message);
        GenerationRequest request = FromProto(std::move(message));
        BelongTo(deadline, &request);
        const bool own = request.belongs_to_call;
        engine.Submit(std::move(request), [stream, own, room](const Engine::SubmitResult& result) {
          stream->Open([&] {
            const std::string& id = JobOf(result).id;
            own ? stream->Own(id) : stream->Follow(id, 0);
          });
        });
      });
      if (refused) stream->Open([&] { throw *refused; });
    };
    const bool posted = with_.pool->Post(in->Length(), submit);
    if (!posted) stream->Open([] { throw TooBusy(); });
    return stream.get();
  });
}

}  // namespace denoised
