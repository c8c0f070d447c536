// What clients see of a server that loads, fails to load, is crowded or stops.
#include <httplib.h>

#include <future>
#include <thread>

#include "tests/eventually.h"
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;
using Code = grpc::StatusCode;
using GenerationStub = v1::GenerationService::Stub;
using AdminStub = v1::AdminService::Stub;
using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class ServerStartTest : public ServerFixture {
 protected:
  HealthCheckResponse::ServingStatus HealthOf(const std::shared_ptr<grpc::Channel>& channel) {
    HealthCheckResponse response;
    EXPECT_TRUE(Call(Health::NewStub(channel), &Health::Stub::Check, {}, &response).ok());
    return response.status();
  }
};

TEST_F(ServerStartTest, HealthFollowsWhatTheStoreTakesAndComesBackByItself) {
  const auto health = [&](const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    EXPECT_TRUE(Call(health_, &Health::Stub::Check, request, &response).ok());
    return response.status();
  };
  const std::string generation = "denoised.v1.GenerationService";
  const auto await = [&](HealthCheckResponse::ServingStatus status) {
    while (health("") != status || health(generation) != status) std::this_thread::yield();
  };
  httplib::Client http("http://" + server_->http_address());
  EXPECT_EQ(health(""), HealthCheckResponse::SERVING);
  engine_->SayNotReady("the disk is full");
  await(HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(health("denoised.v1.DenoiseService"), HealthCheckResponse::SERVING)
      << "steps need no disk";
  EXPECT_EQ(http.Get("/readyz")->body, "the disk is full\n");
  engine_->SayNotReady("");
  await(HealthCheckResponse::SERVING);
  EXPECT_TRUE(Eventually([&] { return http.Get("/readyz")->status == 200; }));
  engine_->SayNotReady("the disk is full");
  server_->Drain();
  EXPECT_EQ(health("denoised.v1.DenoiseService"), HealthCheckResponse::NOT_SERVING);
}

TEST_F(ServerStartTest, AUnitThatHangsIsSeenByEveryProbeUntilItEnds) {
  const auto await = [&](const std::string& service, HealthCheckResponse::ServingStatus status) {
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    do {
      EXPECT_TRUE(Call(health_, &Health::Stub::Check, request, &response).ok());
    } while (response.status() != status);
  };
  httplib::Client http("http://" + server_->http_address());
  EXPECT_THAT(http.Get("/metrics")->body, HasSubstr("denoised_engine_hung 0"));
  engine_->SayHung("step of shapes has run for 60 s");
  const auto answer = http.Get("/readyz");
  EXPECT_EQ(answer->status, 503);
  EXPECT_EQ(answer->body, "HUNG: step of shapes has run for 60 s\n");
  EXPECT_THAT(http.Get("/metrics")->body, HasSubstr("denoised_engine_hung 1"));
  EXPECT_EQ(http.Get("/healthz")->status, 200) << "whoever restarts it by that is no faster";
  for (const char* service : {"", "denoised.v1.GenerationService", "denoised.v1.DenoiseService"}) {
    await(service, HealthCheckResponse::NOT_SERVING);
  }
  engine_->SayHung(std::nullopt);
  for (const char* service : {"", "denoised.v1.GenerationService", "denoised.v1.DenoiseService"}) {
    await(service, HealthCheckResponse::SERVING);
  }
  EXPECT_TRUE(Eventually([&] { return http.Get("/readyz")->status == 200; }));
}

TEST_F(ServerStartTest, EveryPortAnswersWhileModelsLoad) {
  Server loading(TestConfig(), &logger_, kDescriptors);
  std::promise<void> loaded;
  std::promise<void> begun;
  std::thread start([&] {
    loading.Start([&](const EngineOptions&, Observer*, Logger*) {
      begun.set_value();
      loaded.get_future().wait();
      return std::make_unique<FakeEngine>();
    });
  });
  begun.get_future().wait();
  const auto channel = MakeChannel(loading.address());
  const auto admin_channel = MakeChannel(loading.admin_address());
  httplib::Client http("http://" + loading.http_address());
  EXPECT_EQ(HealthOf(channel), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(http.Get("/healthz")->status, 200);
  EXPECT_EQ(http.Get("/readyz")->body, "loading\n");
  EXPECT_EQ(http.Get("/metrics")->status, 200);

  const auto generation = v1::GenerationService::NewStub(channel);
  v1::Job job;
  const grpc::Status submit = Call(generation, &GenerationStub::SubmitJob, {}, &job);
  EXPECT_EQ(submit.error_code(), Code::UNAVAILABLE);
  EXPECT_EQ(Reason(submit), "LOADING");
  EXPECT_GT(Find<google::rpc::RetryInfo>(submit).retry_delay().seconds(), 0);
  EXPECT_EQ(Reason(Call(generation, &GenerationStub::GetJob, {}, &job)), "LOADING");
  grpc::ClientContext context;
  EXPECT_EQ(Reason(generation->Generate(&context, {})->Finish()), "LOADING");
  v1::DenoiseResponse denoised;
  EXPECT_EQ(Reason(Call(v1::DenoiseService::NewStub(channel), &v1::DenoiseService::Stub::Denoise,
                        {}, &denoised)),
            "LOADING");
  v1::ListModelsResponse models;
  EXPECT_EQ(Reason(Call(v1::ModelService::NewStub(channel), &v1::ModelService::Stub::ListModels, {},
                        &models)),
            "LOADING");
  const auto admin = v1::AdminService::NewStub(admin_channel);
  v1::DrainResponse drain;
  EXPECT_EQ(Reason(Call(admin, &AdminStub::Drain, {}, &drain)), "LOADING");
  v1::SetLogLevelRequest level;
  level.set_level("error");
  v1::SetLogLevelResponse previous;
  EXPECT_TRUE(Call(admin, &AdminStub::SetLogLevel, level, &previous).ok()) << "needs no engine";

  loaded.set_value();
  start.join();
  EXPECT_EQ(HealthOf(channel), HealthCheckResponse::SERVING);
  EXPECT_TRUE(Eventually([&] { return http.Get("/readyz")->body == "ready\n"; }));
  EXPECT_TRUE(Call(generation, &GenerationStub::SubmitJob, {}, &job).ok());
}

TEST_F(ServerStartTest, AFailedLoadComesDownAlsoUnderOpenCalls) {
  auto failing = std::make_unique<Server>(TestConfig(), &logger_, kDescriptors);
  const auto health = Health::NewStub(MakeChannel(failing->address()));
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> watch;
  EXPECT_THROW(failing->Start([&](const EngineOptions&, Observer*, Logger*) {
    watch = health->Watch(&context, {});
    HealthCheckResponse state;
    EXPECT_TRUE(watch->Read(&state));
    EXPECT_EQ(state.status(), HealthCheckResponse::NOT_SERVING);
    throw Error(StatusCode::kInvalidArgument, "broken model");
    return std::make_unique<FakeEngine>();
  }),
               Error);
  failing.reset();
  EXPECT_FALSE(watch->Finish().ok());
}

TEST_F(ServerStartTest, ACrowdedPortRefusesNewConnectionsAndRecovers) {
  Config config = TestConfig();
  config.max_connections = 4;
  Server server(config, &logger_, kDescriptors);
  server.Start(
      [](const EngineOptions&, Observer*, Logger*) { return std::make_unique<FakeEngine>(); });
  httplib::Client http("http://" + server.http_address());
  std::vector<std::shared_ptr<grpc::Channel>> crowd;
  for (int i = 0; i < 4; ++i) {
    crowd.push_back(MakeChannel(server.address()));
    EXPECT_EQ(HealthOf(crowd.back()), HealthCheckResponse::SERVING);
  }
  const auto extra = MakeChannel(server.address());
  HealthCheckResponse response;
  EXPECT_EQ(Call(Health::NewStub(extra), &Health::Stub::Check, {}, &response).error_code(),
            Code::UNAVAILABLE);
  EXPECT_EQ(http.Get("/readyz")->status, 503) << "a new client would not get in";
  EXPECT_EQ(http.Get("/healthz")->status, 200);
  const std::string metrics = http.Get("/metrics")->body;
  EXPECT_THAT(metrics, HasSubstr("denoised_connections{listener=\"public\"} 4"));
  EXPECT_THAT(metrics, HasSubstr("denoised_connections_refused_total{listener=\"public\"} "));
  EXPECT_EQ(HealthOf(MakeChannel(server.admin_address())), HealthCheckResponse::SERVING);
  crowd.clear();
  EXPECT_TRUE(Eventually([&] { return http.Get("/readyz")->status == 200; }));
}

TEST_F(ServerStartTest, LongChecksLeaveTheThreadsOfGrpc) {
  SubmitPrompt("p");
  v1::DenoiseRequest denoise;
  for (v1::Tensor* tensor : {denoise.mutable_latents(), denoise.mutable_timestep(),
                             denoise.mutable_encoder_hidden_states()}) {
    tensor->set_dtype("uint8");
    tensor->add_shape(1);
    tensor->set_data("x");
  }
  v1::DenoiseResponse denoised;
  EXPECT_TRUE(Call(denoise_, &v1::DenoiseService::Stub::Denoise, denoise, &denoised).ok());
  v1::ExplainSelectionResponse explained;
  EXPECT_TRUE(Call(admin_, &AdminStub::ExplainSelection, {}, &explained).ok());
  for (const char* call : {"Submit", "Denoise", "Explain"}) {
    EXPECT_EQ(engine_->thread_of(call), "work") << call;
  }
  grpc::ClientContext context;
  v1::GenerateEvent event;
  EXPECT_TRUE(generation_->Generate(&context, {})->Read(&event));
  EXPECT_EQ(engine_->thread_of("Submit"), "work");
}

TEST_F(ServerStartTest, WatchersOfOneConnectionLeaveRoomForItsOtherCalls) {
  const std::string id = SubmitPrompt("p");
  v1::WatchJobRequest request;
  request.set_job_id(id);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Job>>> watchers;
  v1::Job job;
  int refused = 0;
  for (int i = 0; i < 80; ++i) {  // of 64 streams
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    watchers.push_back(generation_->WatchJob(contexts.back().get(), request));
    if (watchers.back()->Read(&job)) continue;
    EXPECT_EQ(Reason(watchers.back()->Finish()), "TOO_MANY_STREAMS");
    ++refused;
  }
  EXPECT_EQ(refused, 80 - 56);
  v1::CancelJobRequest cancel;
  cancel.set_job_id(id);
  EXPECT_TRUE(Call(generation_, &GenerationStub::CancelJob, cancel, &job).ok());
  for (const auto& context : contexts) context->TryCancel();
}

TEST_F(ServerStartTest, ACrowdOfSubmitsIsBoundedAndKeepsNoOperatorWaiting) {
  std::promise<void> go;
  engine_->before_submit = [gate = go.get_future().share()] { gate.wait(); };
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>> crowd;
  for (int i = 0; i < 6 * 50; ++i) {  // two run, 256 wait
    if (i % 50 == 0) channels.push_back(MakeChannel(server_->address()));
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    crowd.push_back(v1::GenerationService::NewStub(channels.back())
                        ->Generate(contexts.back().get(), v1::GenerationRequest()));
  }
  v1::Job job;
  grpc::Status refused;
  for (int i = 0; i < 200 && refused.ok(); ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    const grpc::Status status = generation_->SubmitJob(&context, {}, &job);
    if (status.error_code() == Code::RESOURCE_EXHAUSTED) refused = status;
  }
  EXPECT_EQ(Reason(refused), "QUEUE_FULL");
  v1::ExplainSelectionResponse explained;
  EXPECT_TRUE(Call(admin_, &AdminStub::ExplainSelection, {}, &explained).ok());
  go.set_value();
  for (const auto& context : contexts) context->TryCancel();
}

TEST_F(ServerStartTest, AStopEndsAGenerateWhoseResultIsBeingSent) {
  const std::string id = SubmitPrompt("p");
  const std::string bytes(3 << 20, 'v');
  engine_->Succeed(id, bytes);
  grpc::ClientContext context;
  v1::FetchArtifactRequest request;
  request.set_job_id(id);
  const auto reader = generation_->FetchArtifact(&context, request);
  v1::ArtifactChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  auto drained = std::async(std::launch::async, [&] { return server_->DrainAndWait(); });
  std::string got = chunk.data();
  while (reader->Read(&chunk)) got += chunk.data();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(got.size(), bytes.size());
  EXPECT_TRUE(drained.get()) << "nothing had to be cancelled";
}

}  // namespace
}  // namespace denoised
