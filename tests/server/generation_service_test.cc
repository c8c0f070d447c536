// Whole jobs over a real channel, the engine faked.
#include <grpcpp/generic/generic_stub.h>

#include <array>
#include <future>
#include <thread>

#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Code = grpc::StatusCode;
using Stub = v1::GenerationService::Stub;

class GenerationServiceTest : public ServerFixture {
 protected:
  v1::Job Get(const std::string& id) {
    v1::GetJobRequest request;
    request.set_job_id(id);
    v1::Job job;
    EXPECT_TRUE(Call(generation_, &Stub::GetJob, request, &job).ok());
    return job;
  }

  grpc::Status SubmitAndExpectRefusal(const v1::GenerationRequest& request) {
    v1::Job job;
    const grpc::Status status = Submit(request, &job);
    EXPECT_FALSE(status.ok());
    return status;
  }

  // Sends `bytes` as the request of SubmitJob.
  grpc::Status SendRaw(const std::string& bytes) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    const auto call = stub.PrepareUnaryCall(&context, "/denoised.v1.GenerationService/SubmitJob",
                                            request, &queue);
    call->StartCall();
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return status;
  }

  grpc::Status Fetch(const v1::FetchArtifactRequest& request,
                     std::vector<v1::ArtifactChunk>* chunks) {
    grpc::ClientContext context;
    const auto reader = generation_->FetchArtifact(&context, request);
    for (v1::ArtifactChunk chunk; reader->Read(&chunk);) chunks->push_back(chunk);
    return reader->Finish();
  }
};

TEST_F(GenerationServiceTest, SubmittedJobIsQueuedAndCanBeRead) {
  v1::GenerationRequest request;
  request.set_prompt("a cat");
  v1::Job job;
  ASSERT_TRUE(Submit(request, &job).ok());
  EXPECT_EQ(job.state(), v1::QUEUED);
  EXPECT_EQ(job.prompt(), "a cat");
  EXPECT_GT(job.created_at().seconds(), 1700000000);
  EXPECT_FALSE(job.has_started_at());
  EXPECT_EQ(Get(job.id()).SerializeAsString(), job.SerializeAsString());
}

TEST_F(GenerationServiceTest, EveryFieldReachesTheEngine) {
  v1::GenerationRequest request;
  request.set_model("m");
  request.set_prompt("p");
  request.set_negative_prompt("n");
  request.set_seed(-5);
  request.set_height(32);
  request.set_width(48);
  request.set_num_frames(5);
  request.set_fps(8);
  request.set_num_inference_steps(7);
  request.set_guidance_scale(4.5);
  request.set_flow_shift(3.5);
  request.set_max_sequence_length(64);
  request.mutable_attention()->set_backend(" torch_sdpa ");
  request.mutable_attention()->set_policy(v1::STRICT);
  (*request.mutable_attention()->mutable_parameters()->mutable_fields())["k"].set_number_value(3);
  request.mutable_latents()->set_dtype("float32");
  request.mutable_latents()->add_shape(2);
  request.mutable_latents()->set_data("12345678");
  request.add_formats(v1::NPY);
  request.add_formats(v1::SAFETENSORS);
  request.mutable_time_limit()->set_seconds(100);
  request.mutable_preview()->set_every_steps(4);
  v1::Job job;
  ASSERT_TRUE(Submit(request, &job).ok());
  const GenerationRequest got = engine_->last_request();
  EXPECT_EQ(got.model, "m");
  EXPECT_EQ(got.prompt, "p");
  EXPECT_EQ(got.negative_prompt, "n");
  EXPECT_EQ(got.seed, -5);
  EXPECT_EQ(got.height, 32);
  EXPECT_EQ(got.width, 48);
  EXPECT_EQ(got.num_frames, 5);
  EXPECT_EQ(got.fps, 8);
  EXPECT_EQ(got.num_inference_steps, 7);
  EXPECT_EQ(got.guidance_scale, 4.5);
  EXPECT_EQ(got.flow_shift, 3.5);
  EXPECT_EQ(got.max_sequence_length, 64);
  EXPECT_EQ(got.attention.backend, AttnBackend::kTorchSdpa);
  EXPECT_EQ(got.attention.mode, SelectionMode::kStrict);
  EXPECT_EQ(got.attention.parameters_json, "{\"k\":3}");
  EXPECT_EQ(got.preview->every_steps, 4);
  EXPECT_EQ(got.preview->max_side, 256);
  EXPECT_EQ(got.latents->data, "12345678");
  EXPECT_THAT(got.latents->shape, ElementsAre(2));
  EXPECT_THAT(got.formats, ElementsAre(ArtifactFormat::kNpy, ArtifactFormat::kSafetensors));
  const auto left = *got.deadline - std::chrono::steady_clock::now();
  EXPECT_GT(left, std::chrono::seconds(80));
  EXPECT_LE(left, std::chrono::seconds(100));
}

TEST_F(GenerationServiceTest, UnsetFieldsStayUnset) {
  SubmitPrompt("p");
  const GenerationRequest got = engine_->last_request();
  EXPECT_FALSE(got.negative_prompt || got.seed || got.height || got.width || got.num_frames ||
               got.fps || got.num_inference_steps || got.guidance_scale || got.flow_shift ||
               got.max_sequence_length || got.attention.backend || got.latents || got.deadline ||
               got.preview);
  EXPECT_TRUE(got.formats.empty());
}

TEST_F(GenerationServiceTest, CallDeadlineDoesNotBindASubmittedJob) {
  SubmitPrompt("p");  // the fixture's calls have a deadline
  EXPECT_FALSE(engine_->last_request().deadline);
}

TEST_F(GenerationServiceTest, UnknownBackendIsNamedWithTheKnownOnes) {
  v1::GenerationRequest request;
  request.mutable_attention()->set_backend("FLASHY");
  const grpc::Status status = SubmitAndExpectRefusal(request);
  EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("TORCH_SDPA"));
  EXPECT_EQ(Field(status), "attention.backend");
}

TEST_F(GenerationServiceTest, BrokenTensorsAreRefusedByField) {
  struct Case {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string data, field;
  };
  const int64_t huge = int64_t{1} << 32;
  for (const Case& broken : std::vector<Case>{{"float33", {1}, "1234", "latents.dtype"},
                                              {"", {1}, "1234", "latents.dtype"},
                                              {"float32", {2}, "1234", "latents.data"},
                                              {"float32", {-1}, "", "latents.shape"},
                                              {"float32", {huge, huge}, "", "latents.shape"}}) {
    v1::GenerationRequest request;
    request.mutable_latents()->set_dtype(broken.dtype);
    for (int64_t size : broken.shape) request.mutable_latents()->add_shape(size);
    request.mutable_latents()->set_data(broken.data);
    const grpc::Status status = SubmitAndExpectRefusal(request);
    EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT) << broken.dtype;
    EXPECT_EQ(Field(status), broken.field);
  }
}

TEST_F(GenerationServiceTest, FormatsMustBeKnownAndDifferent) {
  for (const auto& [first, second] : std::vector<std::pair<int, int>>{{1, 1}, {1, 0}, {1, 77}}) {
    v1::GenerationRequest request;
    request.add_formats(static_cast<v1::ArtifactFormat>(first));
    request.add_formats(static_cast<v1::ArtifactFormat>(second));
    const grpc::Status status = SubmitAndExpectRefusal(request);
    EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT) << second;
    EXPECT_THAT(Field(status), HasSubstr("format"));
  }
}

TEST_F(GenerationServiceTest, TimeLimitMustBePositiveAndFinite) {
  for (int64_t seconds : {int64_t{0}, int64_t{-1}, INT64_MAX}) {
    v1::GenerationRequest request;
    request.mutable_time_limit()->set_seconds(seconds);
    EXPECT_EQ(Field(SubmitAndExpectRefusal(request)), "time_limit") << seconds;
  }
}

TEST_F(GenerationServiceTest, DeepParametersAreRefused) {
  v1::GenerationRequest request;
  auto* fields = request.mutable_attention()->mutable_parameters();
  for (int i = 0; i < 20; ++i) {
    fields = (*fields->mutable_fields())["a"].mutable_struct_value();
  }
  EXPECT_EQ(Field(SubmitAndExpectRefusal(request)), "attention.parameters");
}

TEST_F(GenerationServiceTest, UnknownModelIsNotFound) {
  v1::GenerationRequest request;
  request.set_model("missing");
  const grpc::Status status = SubmitAndExpectRefusal(request);
  EXPECT_EQ(status.error_code(), Code::NOT_FOUND);
  EXPECT_EQ(Reason(status), "MODEL_NOT_FOUND");
}

TEST_F(GenerationServiceTest, FullQueueSaysWhenToRetry) {
  engine_->max_queued = 0;
  const grpc::Status status = SubmitAndExpectRefusal(v1::GenerationRequest());
  EXPECT_EQ(status.error_code(), Code::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(status), "QUEUE_FULL");
  const auto delay = Find<google::rpc::RetryInfo>(status).retry_delay();
  EXPECT_EQ(delay.seconds() * 1000 + delay.nanos() / 1000000, engine_->retry_after.count());
}

// The trailer that gRPC's clients with a retry policy obey, in calls and in streams.
TEST_F(GenerationServiceTest, ATimeToRetryIsAPushbackToo) {
  engine_->max_queued = 0;
  const auto pushback = [](const grpc::ClientContext& context) {
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto found = trailers.find("grpc-retry-pushback-ms");
    return found == trailers.end() ? "" : std::string(found->second.data(), found->second.size());
  };
  v1::Job job;
  grpc::ClientContext submit, generate, get;
  EXPECT_FALSE(generation_->SubmitJob(&submit, {}, &job).ok());
  EXPECT_EQ(pushback(submit), std::to_string(engine_->retry_after.count()));
  EXPECT_EQ(Reason(generation_->Generate(&generate, {})->Finish()), "QUEUE_FULL");
  EXPECT_EQ(pushback(generate), std::to_string(engine_->retry_after.count()));
  EXPECT_FALSE(generation_->GetJob(&get, {}, &job).ok());
  EXPECT_EQ(pushback(get), "") << "an unknown job is not there later either";
}

TEST_F(GenerationServiceTest, UnexpectedExceptionIsInternalAndTheServerLives) {
  engine_->throw_on_submit = true;
  EXPECT_EQ(SubmitAndExpectRefusal(v1::GenerationRequest()).error_code(), Code::INTERNAL);
  engine_->throw_on_submit = false;
  SubmitPrompt("p");
}

TEST_F(GenerationServiceTest, MegabytePromptIsRefusedByField) {
  for (const char* piece : {"a", "\xe6\xbc\xa2"}) {
    v1::GenerationRequest request;
    while (request.prompt().size() < (1 << 20)) request.mutable_prompt()->append(piece);
    const grpc::Status status = SubmitAndExpectRefusal(request);
    EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT);
    EXPECT_EQ(Field(status), "prompt");
  }
}

TEST_F(GenerationServiceTest, MessageOverTheCapIsResourceExhausted) {
  v1::GenerationRequest request;
  request.set_prompt(std::string(5 << 20, 'a'));
  EXPECT_EQ(SubmitAndExpectRefusal(request).error_code(), Code::RESOURCE_EXHAUSTED);
  SubmitPrompt("still alive");
}

TEST_F(GenerationServiceTest, MetadataOverTheCapIsRefused) {
  grpc::ClientContext context;
  context.AddMetadata("x-long", std::string(9 << 10, 'a'));
  v1::Job job;
  const grpc::Status status = generation_->SubmitJob(&context, v1::GenerationRequest(), &job);
  EXPECT_EQ(status.error_code(), Code::RESOURCE_EXHAUSTED);
}

TEST_F(GenerationServiceTest, MalformedMessagesAreInvalidArgument) {
  std::string deep;
  for (int i = 0; i < 5000; ++i) deep += "\x0b";  // a group inside of a group
  for (const std::string& bytes :
       {std::string("\xff\xff\xff\xff"),
        std::string("\x12\x7f"
                    "abc"),
        deep, std::string("\x12\x02\xc3\x28")}) {  // the last: a prompt that is not UTF-8
    const grpc::Status status = SendRaw(bytes);
    EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("denoised.v1.GenerationRequest"));
    EXPECT_EQ(Reason(status), "MALFORMED_MESSAGE");
  }
  SubmitPrompt("still alive");
}

TEST_F(GenerationServiceTest, LongErrorTextsFitIntoTheTrailers) {
  const std::string id = SubmitPrompt("p");
  std::string text;
  while (text.size() < 20000) text += "\xe6\xbc\xa2";
  grpc::ClientContext context;
  v1::GenerationRequest request;
  const auto reader = generation_->Generate(&context, request);
  ASSERT_TRUE(engine_->WaitForRequests(2));
  engine_->Fail("job2", {StatusCode::kInvalidArgument, text, "height", "INVALID_FIELD"});
  for (v1::GenerateEvent event; reader->Read(&event);) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Field(status), "height");
}

TEST_F(GenerationServiceTest, JobsAreListedByPagesNewestFirst) {
  for (int i = 0; i < 5; ++i) SubmitPrompt("p" + std::to_string(i));
  std::vector<std::string> ids;
  v1::ListJobsRequest request;
  request.set_page_size(2);
  do {
    v1::ListJobsResponse page;
    ASSERT_TRUE(Call(generation_, &Stub::ListJobs, request, &page).ok());
    EXPECT_LE(page.jobs_size(), 2);
    for (const v1::Job& job : page.jobs()) ids.push_back(job.id());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_THAT(ids, ElementsAre("job5", "job4", "job3", "job2", "job1"));
}

TEST_F(GenerationServiceTest, JobsAreListedByState) {
  SubmitPrompt("a");
  engine_->Succeed(SubmitPrompt("b"), "x");
  v1::ListJobsRequest request;
  request.set_state(v1::SUCCEEDED);
  v1::ListJobsResponse page;
  ASSERT_TRUE(Call(generation_, &Stub::ListJobs, request, &page).ok());
  ASSERT_EQ(page.jobs_size(), 1);
  EXPECT_EQ(page.jobs(0).prompt(), "b");
}

TEST_F(GenerationServiceTest, ListJobsRefusesBadPagesByField) {
  v1::ListJobsRequest token, size, state;
  token.set_page_token("not a token");
  size.set_page_size(-1);
  state.set_state(static_cast<v1::JobState>(99));
  for (const auto& [request, field] : std::vector<std::pair<v1::ListJobsRequest, std::string>>{
           {token, "page_token"}, {size, "page_size"}, {state, "state"}}) {
    v1::ListJobsResponse page;
    const grpc::Status status = Call(generation_, &Stub::ListJobs, request, &page);
    EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT);
    EXPECT_EQ(Field(status), field);
  }
}

TEST_F(GenerationServiceTest, CancelKnowsUnknownRunningAndEndedJobs) {
  const std::string id = SubmitPrompt("p");
  v1::CancelJobRequest request;
  v1::Job job;
  request.set_job_id("nope");
  EXPECT_EQ(Reason(Call(generation_, &Stub::CancelJob, request, &job)), "JOB_NOT_FOUND");
  request.set_job_id(id);
  EXPECT_TRUE(Call(generation_, &Stub::CancelJob, request, &job).ok());
  EXPECT_EQ(job.id(), id);
  const grpc::Status again = Call(generation_, &Stub::CancelJob, request, &job);
  EXPECT_EQ(again.error_code(), Code::FAILED_PRECONDITION);
  EXPECT_EQ(Reason(again), "JOB_FINISHED");
}

TEST_F(GenerationServiceTest, UnknownJobsAreNotFoundEverywhere) {
  v1::GetJobRequest get;
  get.set_job_id("../../etc/passwd");
  v1::Job job;
  EXPECT_EQ(Call(generation_, &Stub::GetJob, get, &job).error_code(), Code::NOT_FOUND);
  grpc::ClientContext context;
  v1::WatchJobRequest watch;
  watch.set_job_id("nope");
  EXPECT_EQ(generation_->WatchJob(&context, watch)->Finish().error_code(), Code::NOT_FOUND);
  v1::FetchArtifactRequest fetch;
  fetch.set_job_id("nope");
  std::vector<v1::ArtifactChunk> chunks;
  EXPECT_EQ(Fetch(fetch, &chunks).error_code(), Code::NOT_FOUND);
}

// ---- watching

TEST_F(GenerationServiceTest, WatchShowsChangesInOrderAndEndsWithTheLast) {
  const std::string id = SubmitPrompt("p");
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_job_id(id);
  const auto reader = generation_->WatchJob(&context, request);
  v1::Job job;
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.state(), v1::QUEUED);
  uint64_t sequence = job.sequence();
  for (int step = 1; step <= 4; ++step) {
    engine_->Change(id, [&](JobSnapshot& j) {
      j.state = JobState::kRunning;
      j.stage = JobStage::kDenoise;
      j.step = step;
      j.eta_seconds = 1.5;
    });
    ASSERT_TRUE(reader->Read(&job));
    EXPECT_EQ(job.step(), step);
    EXPECT_EQ(job.stage(), "denoise");
    EXPECT_EQ(job.eta().nanos(), 500000000);
    EXPECT_GT(job.sequence(), sequence);
    sequence = job.sequence();
  }
  engine_->Succeed(id, "bytes");
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  EXPECT_FALSE(reader->Read(&job));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GenerationServiceTest, WatchResumesAfterASequence) {
  const std::string id = SubmitPrompt("p");
  engine_->Change(id, [](JobSnapshot& j) { j.step = 1; });
  const uint64_t seen = Get(id).sequence();
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_job_id(id);
  request.set_after_sequence(seen);
  const auto reader = generation_->WatchJob(&context, request);
  std::thread later([&] { engine_->Succeed(id, "x"); });
  v1::Job job;
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  EXPECT_EQ(job.sequence(), seen + 1);
  EXPECT_FALSE(reader->Read(&job));
  EXPECT_TRUE(reader->Finish().ok());
  later.join();

  grpc::ClientContext again;
  request.set_after_sequence(job.sequence());
  const auto nothing_new = generation_->WatchJob(&again, request);
  EXPECT_FALSE(nothing_new->Read(&job));
  EXPECT_TRUE(nothing_new->Finish().ok());
}

TEST_F(GenerationServiceTest, AWatcherThatComesBackIsToldWhatItMissed) {
  const std::string id = SubmitPrompt("p");
  const uint64_t seen = Get(id).sequence();
  for (int i = 1; i <= 5; ++i) engine_->Change(id, [i](JobSnapshot& j) { j.step = i; });
  engine_->Succeed(id, "x");
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_job_id(id);
  request.set_after_sequence(seen);
  const auto reader = generation_->WatchJob(&context, request);
  v1::Job job;
  for (int i = 1; i <= 5; ++i) {
    ASSERT_TRUE(reader->Read(&job));
    EXPECT_EQ(job.sequence(), seen + i);
    EXPECT_EQ(job.step(), i);
    EXPECT_NE(job.state(), v1::SUCCEEDED);
  }
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  EXPECT_FALSE(reader->Read(&job));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GenerationServiceTest, SlowWatcherSkipsStatesAndSeesTheLast) {
  const std::string id = SubmitPrompt("p");
  // States of 64 KiB fill the stream's window soon, so that the watcher falls behind.
  engine_->Change(id, [](JobSnapshot& j) { j.prompt = std::string(64 << 10, 'p'); });
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_job_id(id);
  const auto reader = generation_->WatchJob(&context, request);
  constexpr int kChanges = 3000;
  for (int i = 0; i < kChanges; ++i) engine_->Change(id, [&](JobSnapshot& j) { j.step = i; });
  engine_->Succeed(id, "x");
  int received = 0;
  v1::Job job, last;
  while (reader->Read(&job)) {
    EXPECT_GT(job.sequence(), last.sequence());
    last = job;
    ++received;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(last.state(), v1::SUCCEEDED);
  EXPECT_LT(received, kChanges);
}

TEST_F(GenerationServiceTest, ManyWatchersAllSeeTheEnd) {
  const std::string id = SubmitPrompt("p");
  constexpr int kConnections = 4, kStreams = 50;
  std::vector<std::unique_ptr<Stub>> stubs;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Job>>> readers;
  v1::WatchJobRequest request;
  request.set_job_id(id);
  for (int c = 0; c < kConnections; ++c) {
    stubs.push_back(v1::GenerationService::NewStub(MakeChannel(server_->address())));
    for (int s = 0; s < kStreams; ++s) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      readers.push_back(stubs.back()->WatchJob(contexts.back().get(), request));
    }
  }
  v1::Job job;
  for (auto& reader : readers) ASSERT_TRUE(reader->Read(&job));
  engine_->Change(id, [](JobSnapshot& j) { j.state = JobState::kRunning; });
  engine_->Succeed(id, "x");
  for (auto& reader : readers) {
    while (reader->Read(&job)) {
    }
    EXPECT_EQ(job.state(), v1::SUCCEEDED);
    EXPECT_TRUE(reader->Finish().ok());
  }
}

TEST_F(GenerationServiceTest, APreviewGoesOutOnceToEachWatcherAndIsInNoList) {
  const std::string id = SubmitPrompt("p");
  const auto show = [&](int64_t step) {
    engine_->Change(id, [=](JobSnapshot& job) {
      job.preview =
          std::make_shared<JobPreview>(JobPreview{step, "png of " + std::to_string(step)});
    });
  };
  show(3);
  v1::WatchJobRequest request;
  request.set_job_id(id);
  grpc::ClientContext context;
  const auto reader = generation_->WatchJob(&context, request);
  v1::Job job;
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.preview().png(), "png of 3");
  engine_->Change(id, [](JobSnapshot& changed) { changed.step = 4; });
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.step(), 4);
  EXPECT_FALSE(job.has_preview());
  show(5);
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.preview().step(), 5);
  engine_->Succeed(id, "video");
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_FALSE(job.has_preview());
  EXPECT_FALSE(reader->Read(&job));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(Get(id).preview().png(), "png of 5");
  v1::ListJobsResponse page;
  ASSERT_TRUE(Call(generation_, &Stub::ListJobs, {}, &page).ok());
  EXPECT_FALSE(page.jobs(0).has_preview());
}

TEST_F(GenerationServiceTest, WhoSkippedStatesHasTheLastPreviewWithTheEnd) {
  const std::string id = SubmitPrompt("p");
  engine_->Change(id, [](JobSnapshot& job) {
    job.preview = std::make_shared<JobPreview>(JobPreview{9, "last"});
  });
  engine_->Fail(id, {StatusCode::kInternal, "broke", "", ""});
  v1::WatchJobRequest request;
  request.set_job_id(id);
  grpc::ClientContext context;
  const auto reader = generation_->WatchJob(&context, request);
  v1::Job job;
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.preview().png(), "last");
}

TEST_F(GenerationServiceTest, WatcherThatLeavesDoesNotCancelTheJob) {
  const std::string id = SubmitPrompt("p");
  {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_job_id(id);
    const auto reader = generation_->WatchJob(&context, request);
    v1::Job job;
    ASSERT_TRUE(reader->Read(&job));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), Code::CANCELLED);
  }
  engine_->Succeed(id, "x");
  EXPECT_EQ(Get(id).state(), v1::SUCCEEDED);
}

// ---- Generate

TEST_F(GenerationServiceTest, GenerateStreamsStatesThenTheBytes) {
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, v1::GenerationRequest());
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.job().state(), v1::QUEUED);
  std::string bytes;
  while (bytes.size() < (5 << 19)) bytes += "0123456789abcdef";  // 2.5 chunks
  engine_->Succeed(event.job().id(), bytes);
  std::string got;
  v1::ArtifactInfo info;
  v1::JobState last = v1::JOB_STATE_UNSPECIFIED;
  int chunks = 0;
  while (reader->Read(&event)) {
    if (event.has_job()) {
      EXPECT_EQ(chunks, 0) << "states come before bytes";
      last = event.job().state();
      continue;
    }
    if (event.chunk().has_info()) info = event.chunk().info();
    EXPECT_EQ(event.chunk().offset(), got.size());
    EXPECT_LE(event.chunk().data().size(), size_t{1} << 20);
    got += event.chunk().data();
    ++chunks;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(last, v1::SUCCEEDED);
  EXPECT_EQ(chunks, 3);
  EXPECT_TRUE(got == bytes);
  EXPECT_EQ(info.size_bytes(), bytes.size());
  EXPECT_EQ(info.media_type(), "video/mp4");
}

TEST_F(GenerationServiceTest, AJobBelongsToItsGenerateUnlessItHasAKey) {
  for (const char* key : {"", "key"}) {
    v1::GenerationRequest request;
    request.set_prompt(std::string("p") + key);
    request.set_idempotency_key(key);
    grpc::ClientContext context;
    const auto reader = generation_->Generate(&context, request);
    ASSERT_TRUE(engine_->WaitForRequests(*key == '\0' ? 1 : 2));
    EXPECT_EQ(engine_->last_request().belongs_to_call, *key == '\0');
    context.TryCancel();
    reader->Finish();
  }
  SubmitPrompt("p");
  EXPECT_FALSE(engine_->last_request().belongs_to_call);
}

TEST_F(GenerationServiceTest, UnderAKeyTheCallsDeadlineEndsTheCallAndNotTheJob) {
  v1::GenerationRequest request;
  request.set_prompt("p");
  request.set_idempotency_key("key");
  {
    Connect();
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
    const auto reader = generation_->Generate(&context, request);
    ASSERT_TRUE(engine_->WaitForRequests(1));
    EXPECT_FALSE(engine_->last_request().deadline);
    for (v1::GenerateEvent event; reader->Read(&event);) {
    }
    EXPECT_EQ(reader->Finish().error_code(), Code::DEADLINE_EXCEEDED);
  }
  EXPECT_EQ(Get("job1").state(), v1::QUEUED);
  engine_->Succeed("job1", "bytes");
  for (const bool with_deadline : {false, true}) {
    grpc::ClientContext context;
    if (with_deadline) {
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(5));
    }
    const auto reader = generation_->Generate(&context, request);
    v1::GenerateEvent event;
    ASSERT_TRUE(reader->Read(&event));
    EXPECT_EQ(event.job().id(), "job1");
    ASSERT_TRUE(reader->Read(&event));
    EXPECT_EQ(event.chunk().data(), "bytes");
    EXPECT_FALSE(reader->Read(&event));
    EXPECT_TRUE(reader->Finish().ok());
  }
}

TEST_F(GenerationServiceTest, UnderAKeyTheTimeLimitAloneIsTheJobsDeadline) {
  v1::GenerationRequest request;
  request.set_idempotency_key("key");
  request.mutable_time_limit()->set_seconds(3600);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const auto reader = generation_->Generate(&context, request);
  ASSERT_TRUE(engine_->WaitForRequests(1));
  EXPECT_GT(*engine_->last_request().deadline,
            std::chrono::steady_clock::now() + std::chrono::minutes(30));
  context.TryCancel();
  reader->Finish();
}

TEST_F(GenerationServiceTest, ClientThatLeavesGenerateCancelsTheJob) {
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, v1::GenerationRequest());
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  EXPECT_TRUE(engine_->WaitForCancel(event.job().id()));
  EXPECT_EQ(reader->Finish().error_code(), Code::CANCELLED);
}

TEST_F(GenerationServiceTest, GenerateDeadlineReachesTheEngineAndCancels) {
  Connect();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  const auto reader = generation_->Generate(&context, v1::GenerationRequest());
  ASSERT_TRUE(engine_->WaitForRequests(1));
  const auto left = *engine_->last_request().deadline - std::chrono::steady_clock::now();
  EXPECT_LE(left, std::chrono::seconds(5));  // Not the job's own hours; gRPC rounds the deadline.
  EXPECT_TRUE(engine_->WaitForCancel("job1"));
  for (v1::GenerateEvent event; reader->Read(&event);) {
  }
  EXPECT_EQ(reader->Finish().error_code(), Code::DEADLINE_EXCEEDED);
}

TEST_F(GenerationServiceTest, FailedJobEndsGenerateWithItsError) {
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, v1::GenerationRequest());
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  engine_->Fail(event.job().id(),
                {StatusCode::kFailedPrecondition, "nothing can serve", "", "STRICT_REFUSED"});
  v1::Job last;
  while (reader->Read(&event)) last = event.job();
  EXPECT_EQ(last.state(), v1::FAILED);
  EXPECT_EQ(last.error().reason(), "STRICT_REFUSED");
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), Code::FAILED_PRECONDITION);
  EXPECT_EQ(status.error_message(), "nothing can serve");
  EXPECT_EQ(Reason(status), "STRICT_REFUSED");
}

TEST_F(GenerationServiceTest, CancelledJobEndsGenerateAsCancelled) {
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, v1::GenerationRequest());
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  engine_->Cancel(event.job().id());
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), Code::CANCELLED);
}

TEST_F(GenerationServiceTest, RefusedGenerateEndsWithTheField) {
  grpc::ClientContext context;
  v1::GenerationRequest request;
  request.mutable_attention()->set_backend("nope");
  const grpc::Status status = generation_->Generate(&context, request)->Finish();
  EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Field(status), "attention.backend");
}

// ---- FetchArtifact

TEST_F(GenerationServiceTest, FetchGivesTheBytesFromAnOffset) {
  const std::string id = SubmitPrompt("p");
  const std::string bytes = std::string(1 << 20, 'a') + "tail";
  engine_->Succeed(id, bytes);
  v1::FetchArtifactRequest request;
  request.set_job_id(id);
  std::vector<v1::ArtifactChunk> chunks;
  ASSERT_TRUE(Fetch(request, &chunks).ok());
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].info().size_bytes(), bytes.size());
  EXPECT_FALSE(chunks[1].has_info());
  EXPECT_EQ(chunks[1].data(), "tail");
  request.set_offset(bytes.size() - 2);
  chunks.clear();
  ASSERT_TRUE(Fetch(request, &chunks).ok());
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].offset(), bytes.size() - 2);
  EXPECT_EQ(chunks[0].data(), "il");
}

TEST_F(GenerationServiceTest, ResultsThatHadToGoAreMissedByName) {
  v1::GenerationRequest request;
  request.set_prompt("p");
  request.set_idempotency_key("key");
  v1::Job job;
  ASSERT_TRUE(Submit(request, &job).ok());
  engine_->Change(job.id(), [](JobSnapshot& j) { j.state = JobState::kSucceeded; });
  v1::FetchArtifactRequest fetch;
  fetch.set_job_id(job.id());
  std::vector<v1::ArtifactChunk> chunks;
  const grpc::Status fetched = Fetch(fetch, &chunks);
  EXPECT_EQ(fetched.error_code(), Code::NOT_FOUND);
  EXPECT_EQ(Reason(fetched), "ARTIFACT_NOT_FOUND");
  EXPECT_THAT(fetched.error_message(), HasSubstr("no longer kept"));
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, request);
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.job().state(), v1::SUCCEEDED);
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(Reason(reader->Finish()), "ARTIFACT_NOT_FOUND");
}

TEST_F(GenerationServiceTest, FetchRefusesWhatIsNotThere) {
  const std::string id = SubmitPrompt("p");
  v1::FetchArtifactRequest request;
  request.set_job_id(id);
  std::vector<v1::ArtifactChunk> chunks;
  EXPECT_EQ(Reason(Fetch(request, &chunks)), "JOB_NOT_FINISHED");
  engine_->Succeed(id, "bytes");
  request.set_format(v1::GIF);
  EXPECT_EQ(Reason(Fetch(request, &chunks)), "ARTIFACT_NOT_FOUND");
  request.set_format(v1::MP4);
  request.set_offset(6);
  EXPECT_EQ(Fetch(request, &chunks).error_code(), Code::OUT_OF_RANGE);
  EXPECT_TRUE(chunks.empty());
}

// More than the threads that check requests.
TEST_F(GenerationServiceTest, SubmitsThatWaitForTheDiskHoldNobodyUp) {
  engine_->hold_submits = true;
  std::vector<std::future<grpc::Status>> submits;
  for (int i = 0; i < 16; ++i) {
    submits.push_back(std::async(std::launch::async, [this] {
      v1::Job job;
      const grpc::Status status = Submit({}, &job);
      EXPECT_FALSE(job.id().empty());
      return status;
    }));
  }
  EXPECT_TRUE(engine_->WaitForHeldSubmits(16));
  v1::CancelJobRequest cancel;
  cancel.set_job_id("unknown");
  v1::Job job;
  EXPECT_EQ(Call(generation_, &v1::GenerationService::Stub::CancelJob, cancel, &job).error_code(),
            grpc::StatusCode::NOT_FOUND);
  engine_->ReleaseSubmits();
  for (auto& submit : submits) EXPECT_TRUE(submit.get().ok());
}

TEST_F(GenerationServiceTest, GeneratesThatWaitForTheDiskHoldNobodyUp) {
  engine_->hold_submits = true;
  constexpr size_t kCalls = 16;
  std::array<grpc::ClientContext, kCalls> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>> readers;
  for (grpc::ClientContext& context : contexts) {
    v1::GenerationRequest request;
    request.set_prompt("p");
    readers.push_back(generation_->Generate(&context, request));
  }
  EXPECT_TRUE(engine_->WaitForHeldSubmits(kCalls));
  v1::CancelJobRequest cancel;
  cancel.set_job_id("unknown");
  v1::Job job;
  EXPECT_EQ(Call(generation_, &Stub::CancelJob, cancel, &job).error_code(), Code::NOT_FOUND);
  contexts[0].TryCancel();
  EXPECT_EQ(readers[0]->Finish().error_code(), Code::CANCELLED);
  engine_->ReleaseSubmits();
  v1::GenerateEvent event;
  for (size_t i = 1; i < kCalls; ++i) {
    ASSERT_TRUE(readers[i]->Read(&event)) << i;
    EXPECT_EQ(event.job().state(), v1::QUEUED);
    contexts[i].TryCancel();
  }
}

}  // namespace
}  // namespace denoised
