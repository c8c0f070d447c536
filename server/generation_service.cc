#include "server/generation_service.h"

#include <algorithm>
#include <utility>

#include "server/call.h"
#include "server/convert.h"
#include "server/job_stream.h"

namespace denoised {
namespace {

constexpr int kDefaultPageSize = 100;
constexpr int kMaxPageSize = 1000;

using Stream = grpc::ServerWriteReactor<grpc::ByteBuffer>;

Error JobNotFound(const std::string& job_id) {
  return Error(StatusCode::kNotFound, "no job '" + job_id.substr(0, 64) + "'", "job_id",
               "JOB_NOT_FOUND");
}

v1::ListJobsResponse ListPage(const JobStore& jobs, const v1::ListJobsRequest& request) {
  if (request.page_size() < 0 || request.page_size() > kMaxPageSize) {
    throw InvalidField("page_size", "from 0 to 1000, got " + std::to_string(request.page_size()));
  }
  const int size = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
  const JobPage page =
      jobs.List(FromProto(request.state()), static_cast<size_t>(size), request.page_token());
  v1::ListJobsResponse response;
  for (const JobSnapshot& job : page.jobs) *response.add_jobs() = ToProto(job);
  response.set_next_page_token(page.next_page_token);
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
  auto format = FromProto(request.format());
  if (!format && !job.artifacts.empty()) format = job.artifacts.front().format;
  auto artifact = format ? jobs.GetArtifact(job.id, *format) : nullptr;
  if (!artifact) {
    const std::string name = format ? std::string(ArtifactFormatName(*format)) : "any";
    throw Error(StatusCode::kNotFound, "job '" + job.id + "' has no result of format " + name,
                "format", "ARTIFACT_NOT_FOUND");
  }
  if (request.offset() > artifact->bytes.size()) {
    throw Error(StatusCode::kOutOfRange,
                "offset: at most " + std::to_string(artifact->bytes.size()) + ", got " +
                    std::to_string(request.offset()),
                "offset", "INVALID_OFFSET");
  }
  return artifact;
}

// Runs `make`, which starts a stream; a failure before that becomes the stream's status.
template <typename Make>
Stream* StartStream(const CallTimer& timer, const Make& make) {
  Stream* stream = nullptr;
  const grpc::Status status = StatusOf([&] { stream = make(); });
  return status.ok() ? stream : new FailedStream(timer, status);
}

}  // namespace

JobSnapshot GenerationService::Submit(GenerationRequest request) {
  Engine::SubmitResult result = engine_->Submit(std::move(request));
  if (const Error* error = std::get_if<Error>(&result)) throw *error;
  return std::get<JobSnapshot>(std::move(result));
}

JobSnapshot GenerationService::Find(const std::string& job_id) const {
  auto job = engine_->jobs().Get(job_id);
  if (!job) throw JobNotFound(job_id);
  return *std::move(job);
}

grpc::ServerUnaryReactor* GenerationService::SubmitJob(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in,
                                                       grpc::ByteBuffer* out) {
  return AnswerUnary<v1::GenerationRequest>(context, in, out, metrics_, "SubmitJob",
                                            [this](v1::GenerationRequest&& request) {
                                              return ToProto(Submit(FromProto(std::move(request))));
                                            });
}

grpc::ServerUnaryReactor* GenerationService::GetJob(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* in,
                                                    grpc::ByteBuffer* out) {
  return AnswerUnary<v1::GetJobRequest>(
      context, in, out, metrics_, "GetJob",
      [this](const v1::GetJobRequest& request) { return ToProto(Find(request.job_id())); });
}

grpc::ServerUnaryReactor* GenerationService::ListJobs(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* in,
                                                      grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ListJobsRequest>(
      context, in, out, metrics_, "ListJobs",
      [this](const v1::ListJobsRequest& request) { return ListPage(engine_->jobs(), request); });
}

grpc::ServerUnaryReactor* GenerationService::CancelJob(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in,
                                                       grpc::ByteBuffer* out) {
  return AnswerUnary<v1::CancelJobRequest>(
      context, in, out, metrics_, "CancelJob", [this](const v1::CancelJobRequest& request) {
        const std::string& id = request.job_id();
        switch (engine_->Cancel(id)) {
          case Engine::CancelResult::kNotFound:
            throw JobNotFound(id);
          case Engine::CancelResult::kAlreadyFinished:
            throw Error(StatusCode::kFailedPrecondition, "job '" + id + "' has already ended",
                        "job_id", "JOB_FINISHED");
          case Engine::CancelResult::kCancelling:
            break;
        }
        return ToProto(Find(id));
      });
}

Stream* GenerationService::WatchJob(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* in) {
  const CallTimer timer(metrics_, "WatchJob");
  return StartStream(timer, [&] {
    v1::WatchJobRequest request;
    ParseMessage(*in, &request);
    Find(request.job_id());
    auto stream = std::make_shared<WatchStream>(timer, engine_, dispatcher_, request.job_id(),
                                                request.after_sequence());
    stream->Begin();
    return stream.get();
  });
}

Stream* GenerationService::FetchArtifact(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* in) {
  const CallTimer timer(metrics_, "FetchArtifact");
  return StartStream(timer, [&] {
    v1::FetchArtifactRequest request;
    ParseMessage(*in, &request);
    auto artifact = FindArtifact(engine_->jobs(), Find(request.job_id()), request);
    auto stream = std::make_shared<FetchStream>(timer, std::move(artifact), request.offset());
    stream->Start();
    return stream.get();
  });
}

Stream* GenerationService::Generate(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* in) {
  const CallTimer timer(metrics_, "Generate");
  return StartStream(timer, [&] {
    v1::GenerationRequest message;
    ParseMessage(*in, &message);
    GenerationRequest request = FromProto(std::move(message));
    const auto deadline = SteadyDeadline(context->deadline());
    if (deadline) request.deadline = std::min(request.deadline.value_or(*deadline), *deadline);
    const JobSnapshot job = Submit(std::move(request));
    auto stream = std::make_shared<GenerateStream>(timer, engine_, dispatcher_, job.id,
                                                   /*after_sequence=*/0);
    stream->Begin();
    return stream.get();
  });
}

}  // namespace denoised
