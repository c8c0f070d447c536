// The operator's side, single steps, health and pages over real channels, the engine faked.
#include <grpcpp/generic/generic_stub.h>
#include <httplib.h>

#include <atomic>
#include <thread>

#include "tests/eventually.h"
#include "tests/runtime/leases.h"
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;
using Code = grpc::StatusCode;
using Stub = v1::AdminService::Stub;

class AdminServiceTest : public ServerFixture {
 protected:
  grpc::Status ForceBackend(const std::string& backend, v1::Lease* lease) {
    v1::ForceBackendRequest request;
    request.set_backend(backend);
    return Call(admin_, &Stub::ForceBackend, request, lease);
  }
  bool WaitForLeases(size_t count) {
    for (int i = 0; i < 2000 && engine_->policy().List().size() != count; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return engine_->policy().List().size() == count;
  }
  grpc::Status Release(const v1::ReleaseForceRequest& request, int* released = nullptr) {
    v1::ReleaseForceResponse response;
    const grpc::Status status = Call(admin_, &Stub::ReleaseForce, request, &response);
    if (released != nullptr) *released = response.released();
    return status;
  }
  // Calls a method by its full name with an empty message.
  static Code CallByName(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice empty("");
    const grpc::ByteBuffer request(&empty, 1);
    grpc::ByteBuffer response;
    const auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
    call->StartCall();
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return status.error_code();
  }
};

TEST_F(AdminServiceTest, DrillsReachTheEngineWhereTheyAreOn) {
  v1::DrillRequest request;
  request.set_backend("sage_attn");
  request.set_fault("stall");
  request.mutable_ttl()->set_seconds(3);
  request.set_reason("a rehearsal");
  v1::DrillResponse response;
  EXPECT_EQ(Reason(Call(admin_, &Stub::Drill, request, &response)), "DRILLS_OFF");
  EXPECT_TRUE(engine_->audit().ReadAfter(0, 10).empty()) << "nothing was changed";
  engine_->drills_on = true;
  ASSERT_TRUE(Call(admin_, &Stub::Drill, request, &response).ok());
  const auto drills = engine_->drills();
  ASSERT_EQ(drills.size(), 1u);
  EXPECT_EQ(drills[0].backend, AttnBackend::kSageAttn);
  EXPECT_EQ(drills[0].fault, Fault::kStall);
  EXPECT_EQ(drills[0].ttl, std::chrono::seconds(3));
  EXPECT_EQ(drills[0].reason, "a rehearsal");
  EXPECT_THAT(drills[0].by, HasSubstr("127.0.0.1"));
  const auto told = engine_->audit().ReadAfter(0, 10);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].what, "drill");
  EXPECT_EQ(told[0].who, drills[0].by);
  EXPECT_EQ(told[0].subject, "SAGE_ATTN");
  EXPECT_EQ(told[0].new_value, "stall");
  EXPECT_EQ(told[0].reason, "a rehearsal");
  EXPECT_GT(told[0].ends_at, told[0].time);
  request.set_reason(std::string(257, 'x'));
  EXPECT_EQ(Call(admin_, &Stub::Drill, request, &response).error_code(), Code::INVALID_ARGUMENT);
}

TEST_F(AdminServiceTest, ShadowsCrossUnchangedAndAreInTheAudit) {
  v1::ShadowRequest request;
  request.set_candidate("sage_attn");
  request.set_baseline("reference");
  request.mutable_scope()->set_model("shapes");
  request.mutable_scope()->mutable_layers()->set_last(3);
  request.set_share_percent(7);
  request.mutable_ttl()->set_seconds(60);
  (*request.mutable_parameters()->mutable_fields())["tile"].set_number_value(8);
  request.set_reason("a look");
  v1::ShadowRun run;
  ASSERT_TRUE(Call(admin_, &Stub::Shadow, request, &run).ok());
  EXPECT_EQ(run.id(), "shadow-1");
  EXPECT_EQ(run.candidate(), "SAGE_ATTN");
  EXPECT_EQ(run.baseline(), "REFERENCE");
  EXPECT_EQ(run.scope(), "model=shapes layers=0-3");
  EXPECT_EQ(run.share_percent(), 7);
  EXPECT_EQ(run.remaining().seconds(), 60);
  EXPECT_EQ(run.added_seconds(), 0.25);
  EXPECT_EQ(run.device_seconds(), 100);
  EXPECT_EQ(run.budget(), 0.02);
  const ShadowRequest given = engine_->ListShadows().at(0).request;
  EXPECT_EQ(given.parameters, "{\"tile\":8}");
  EXPECT_EQ(given.scope.where.layers, (Interval{0, 3}));

  v1::ListShadowsResponse listed;
  ASSERT_TRUE(Call(admin_, &Stub::ListShadows, v1::ListShadowsRequest(), &listed).ok());
  ASSERT_EQ(listed.shadows_size(), 1);
  ASSERT_EQ(listed.shadows(0).statistics_size(), 1);
  const v1::ShadowStatistics& found = listed.shadows(0).statistics(0);
  EXPECT_EQ(found.role() + " " + found.sigma_band() + " " + found.baseline(),
            "self 0.2-0.4 REFERENCE");
  EXPECT_EQ(found.samples(), 7);
  EXPECT_EQ(found.relative_l2_p50(), 0.1);
  EXPECT_EQ(found.relative_l2_p99(), 0.2);
  EXPECT_EQ(found.relative_l2_max(), 0.3);
  EXPECT_EQ(found.max_abs(), 0.4);
  EXPECT_EQ(found.cosine_distance(), 0.5);

  v1::StopShadowRequest stop;
  EXPECT_EQ(Field(Call(admin_, &Stub::StopShadow, stop, &run)), "id");
  stop.set_id("shadow-1");
  ASSERT_TRUE(Call(admin_, &Stub::StopShadow, stop, &run).ok());
  EXPECT_EQ(run.end(), "stopped");
  EXPECT_EQ(Reason(Call(admin_, &Stub::StopShadow, stop, &run)), "SHADOW_NOT_FOUND");
  const std::vector<AuditEntry> told = engine_->audit().ReadAfter(0, 10);
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0].what, "shadow");
  EXPECT_EQ(told[0].subject, "shadow-1");
  EXPECT_EQ(told[0].new_value,
            "SAGE_ATTN with {\"tile\":8} against REFERENCE, model=shapes layers=0-3, 7% of calls");
  EXPECT_EQ(told[0].reason, "a look");
  EXPECT_TRUE(told[0].ends_at);
  EXPECT_EQ(told[1].old_value, told[0].new_value);
  EXPECT_EQ(told[1].reason, "stopped");
}

TEST_F(AdminServiceTest, WhatNoShadowCanBeIsRefusedByField) {
  const auto field = [&](const std::function<void(v1::ShadowRequest&)>& edit) {
    v1::ShadowRequest request;
    request.set_candidate("SAGE_ATTN");
    edit(request);
    v1::ShadowRun run;
    return Field(Call(admin_, &Stub::Shadow, request, &run));
  };
  using R = v1::ShadowRequest;
  EXPECT_EQ(field([](R& r) { r.set_candidate("fastest"); }), "candidate");
  EXPECT_EQ(field([](R& r) { r.set_baseline("fastest"); }), "baseline");
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->set_role("vae"); }), "scope.role");
  EXPECT_EQ(field([](R& r) { r.mutable_ttl()->set_seconds(-1); }), "ttl");
  EXPECT_EQ(field([](R& r) { r.set_reason(std::string(257, 'x')); }), "reason");
  EXPECT_TRUE(engine_->ListShadows().empty());
}

TEST_F(AdminServiceTest, BackendsShowTheirCircuitBreakers) {
  engine_->breakers = {{"shapes", AttnBackend::kTorchSdpa, "self", BreakerState::kOpen,
                        std::chrono::milliseconds(1500), 3, "it broke"}};
  v1::ListBackendsResponse response;
  ASSERT_TRUE(Call(admin_, &Stub::ListBackends, v1::ListBackendsRequest(), &response).ok());
  ASSERT_EQ(response.backends(0).breakers_size(), 1);
  const v1::Breaker& breaker = response.backends(0).breakers(0);
  EXPECT_EQ(breaker.model(), "shapes");
  EXPECT_EQ(breaker.shape(), "self");
  EXPECT_EQ(breaker.state(), "open");
  EXPECT_EQ(breaker.remaining().seconds(), 1);
  EXPECT_EQ(breaker.remaining().nanos(), 500'000'000);
  EXPECT_EQ(breaker.failures(), 3);
  EXPECT_EQ(breaker.last_error(), "it broke");
  EXPECT_EQ(response.backends(1).breakers_size(), 0);
}

TEST_F(AdminServiceTest, ForceIsListedAndReleased) {
  v1::ForceBackendRequest request;
  request.set_backend("reference");
  request.mutable_ttl()->set_seconds(60);
  request.set_reason("checking a suspect frame");
  v1::Lease lease;
  ASSERT_TRUE(Call(admin_, &Stub::ForceBackend, request, &lease).ok());
  EXPECT_EQ(lease.backend(), "REFERENCE");
  EXPECT_EQ(lease.scope(), "server");
  EXPECT_GT(lease.remaining().seconds(), 50);
  EXPECT_EQ(engine_->policy().forced(), AttnBackend::kReference);

  v1::ListLeasesResponse leases;
  ASSERT_TRUE(Call(admin_, &Stub::ListLeases, v1::ListLeasesRequest(), &leases).ok());
  ASSERT_EQ(leases.leases_size(), 1);
  EXPECT_EQ(leases.leases(0).reason(), "checking a suspect frame");
  EXPECT_THAT(leases.leases(0).holder(), HasSubstr("127.0.0.1"));

  v1::ReleaseForceRequest release;
  release.set_lease_id(lease.id());
  int released = 0;
  ASSERT_TRUE(Release(release, &released).ok());
  EXPECT_EQ(released, 1);
  EXPECT_FALSE(engine_->policy().forced());
  EXPECT_EQ(Reason(Release(release)), "LEASE_NOT_FOUND");
}

TEST_F(AdminServiceTest, ForceRefusesUnknownUnusableAndOddRequests) {
  v1::Lease lease;
  const grpc::Status unknown = ForceBackend("FLASHY", &lease);
  EXPECT_EQ(unknown.error_code(), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Field(unknown), "backend");
  EXPECT_EQ(ForceBackend("", &lease).error_code(), Code::INVALID_ARGUMENT);
  const grpc::Status unusable = ForceBackend("SAGE_ATTN", &lease);
  EXPECT_EQ(unusable.error_code(), Code::FAILED_PRECONDITION);
  EXPECT_THAT(unusable.error_message(), HasSubstr("usable: REFERENCE"));
  for (int64_t seconds : {int64_t{0}, int64_t{-3}, int64_t{86400} * 400}) {
    v1::ForceBackendRequest request;
    request.set_backend("REFERENCE");
    request.mutable_ttl()->set_seconds(seconds);
    EXPECT_EQ(Field(Call(admin_, &Stub::ForceBackend, request, &lease)), "ttl") << seconds;
  }
  v1::ForceBackendRequest request;
  request.set_backend("REFERENCE");
  request.set_reason(std::string(257, 'r'));
  EXPECT_EQ(Field(Call(admin_, &Stub::ForceBackend, request, &lease)), "reason");
  EXPECT_TRUE(engine_->policy().List().empty());
}

google::protobuf::Struct Sparsity(double value) {
  google::protobuf::Struct parameters;
  (*parameters.mutable_fields())["sparsity"].set_number_value(value);
  return parameters;
}

TEST_F(AdminServiceTest, ForceCarriesParametersOfItsBackend) {
  v1::ForceBackendRequest request;
  request.set_backend("VIDEO_SPARSE_ATTN");
  *request.mutable_parameters() = Sparsity(0.5);
  v1::Lease lease;
  ASSERT_TRUE(Call(admin_, &Stub::ForceBackend, request, &lease).ok());
  EXPECT_EQ(lease.parameters().fields().at("sparsity").number_value(), 0.5);
  EXPECT_EQ(engine_->policy().List().at(0).parameters, "{\"sparsity\":0.5}");
  (*request.mutable_parameters()->mutable_fields())["wrong"].set_number_value(1);
  EXPECT_EQ(Field(Call(admin_, &Stub::ForceBackend, request, &lease)), "parameters.wrong");
  request.clear_parameters();
  ASSERT_TRUE(Call(admin_, &Stub::ForceBackend, request, &lease).ok());
  EXPECT_FALSE(lease.has_parameters());
  EXPECT_EQ(engine_->policy().List().size(), 2u);
}

TEST_F(AdminServiceTest, ForcesAreBounded) {
  for (size_t i = 0; i < SelectionPolicy::kMaxLeases; ++i) {
    AddForce(engine_->policy(), AttnBackend::kReference, std::nullopt, "", "test");
  }
  v1::Lease lease;
  const grpc::Status refused = ForceBackend("REFERENCE", &lease);
  EXPECT_EQ(refused.error_code(), Code::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(refused), "TOO_MANY_FORCES");
  v1::HoldBackendRequest hold;
  hold.set_backend("REFERENCE");
  grpc::ClientContext context;
  EXPECT_EQ(admin_->HoldBackend(&context, hold)->Finish().error_code(), Code::RESOURCE_EXHAUSTED);
}

// A release between the making of a force and its stream once left the stream open for ever.
TEST_F(AdminServiceTest, EveryHoldEndsHoweverEarlyItsForceIsReleased) {
  std::atomic<bool> done{false};
  std::thread clearer([&] {
    while (!done) engine_->policy().Clear();
  });
  for (int i = 0; i < 300; ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::HoldBackendRequest request;
    request.set_backend("REFERENCE");
    const auto reader = admin_->HoldBackend(&context, request);
    v1::Lease lease;
    EXPECT_TRUE(reader->Read(&lease)) << "the lease comes even where it has ended already";
    EXPECT_FALSE(reader->Read(&lease));
    EXPECT_TRUE(reader->Finish().ok()) << i;
  }
  done = true;
  clearer.join();
}

TEST_F(AdminServiceTest, ReleaseAllEndsEveryForceAndHold) {
  v1::Lease lease;
  ASSERT_TRUE(ForceBackend("REFERENCE", &lease).ok());
  grpc::ClientContext context;
  v1::HoldBackendRequest hold;
  hold.set_backend("TORCH_SDPA");
  const auto reader = admin_->HoldBackend(&context, hold);
  ASSERT_TRUE(reader->Read(&lease));
  v1::ReleaseForceRequest all;
  all.set_all(true);
  int released = 0;
  ASSERT_TRUE(Release(all, &released).ok());
  EXPECT_EQ(released, 2);
  EXPECT_FALSE(reader->Read(&lease));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(engine_->policy().List().empty());
}

TEST_F(AdminServiceTest, ReleaseNeedsEitherAnIdOrAll) {
  v1::ReleaseForceRequest neither, both;
  both.set_all(true);
  both.set_lease_id("x");
  EXPECT_EQ(Field(Release(neither)), "lease_id");
  EXPECT_EQ(Field(Release(both)), "lease_id");
}

TEST_F(AdminServiceTest, HoldForcesUntilTheClientLeaves) {
  grpc::ClientContext context;
  v1::HoldBackendRequest request;
  request.set_backend("REFERENCE");
  const auto reader = admin_->HoldBackend(&context, request);
  v1::Lease lease;
  ASSERT_TRUE(reader->Read(&lease));
  EXPECT_EQ(lease.backend(), "REFERENCE");
  EXPECT_EQ(engine_->policy().forced(), AttnBackend::kReference);
  context.TryCancel();
  EXPECT_TRUE(WaitForLeases(0));
  EXPECT_EQ(reader->Finish().error_code(), Code::CANCELLED);
}

TEST_F(AdminServiceTest, HoldEndsWithItsConnection) {
  auto channel = MakeChannel(server_->admin_address());
  auto stub = v1::AdminService::NewStub(channel);
  auto context = std::make_unique<grpc::ClientContext>();
  v1::HoldBackendRequest request;
  request.set_backend("REFERENCE");
  auto reader = stub->HoldBackend(context.get(), request);
  v1::Lease lease;
  ASSERT_TRUE(reader->Read(&lease));
  ASSERT_EQ(engine_->policy().List().size(), 1u);
  reader.reset();  // as when the process dies: nobody says good-bye
  context.reset();
  stub.reset();
  channel.reset();
  EXPECT_TRUE(WaitForLeases(0));
}

TEST_F(AdminServiceTest, HoldEndsWithOkOnReleaseAndOnItsTtl) {
  v1::HoldBackendRequest request;
  request.set_backend("REFERENCE");
  v1::Lease lease;
  grpc::ClientContext first;
  auto reader = admin_->HoldBackend(&first, request);
  ASSERT_TRUE(reader->Read(&lease));
  v1::ReleaseForceRequest release;
  release.set_lease_id(lease.id());
  ASSERT_TRUE(Release(release).ok());
  EXPECT_FALSE(reader->Read(&lease));
  EXPECT_TRUE(reader->Finish().ok());

  grpc::ClientContext second;
  request.mutable_ttl()->set_nanos(100000000);
  reader = admin_->HoldBackend(&second, request);
  ASSERT_TRUE(reader->Read(&lease));
  EXPECT_TRUE(lease.has_remaining());
  EXPECT_FALSE(reader->Read(&lease));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(engine_->policy().List().empty());
}

TEST_F(AdminServiceTest, RefusedHoldEndsAtOnce) {
  grpc::ClientContext context;
  v1::HoldBackendRequest request;
  request.set_backend("SAGE_ATTN");
  EXPECT_EQ(admin_->HoldBackend(&context, request)->Finish().error_code(),
            Code::FAILED_PRECONDITION);
}

TEST_F(AdminServiceTest, BackendsSayWhyTheyAreNotUsable) {
  v1::ListBackendsResponse response;
  ASSERT_TRUE(Call(admin_, &Stub::ListBackends, v1::ListBackendsRequest(), &response).ok());
  ASSERT_EQ(response.backends_size(), 2);
  EXPECT_TRUE(response.backends(0).usable());
  EXPECT_FALSE(response.backends(1).usable());
  EXPECT_EQ(response.backends(1).why_not(), "not in this build");
}

TEST_F(AdminServiceTest, ExplanationNamesChoiceAndCandidatesByRole) {
  v1::ExplainSelectionRequest request;
  request.set_height(128);
  request.mutable_attention()->set_backend("FLASH_ATTN");
  v1::ExplainSelectionResponse response;
  ASSERT_TRUE(Call(admin_, &Stub::ExplainSelection, request, &response).ok());
  ASSERT_EQ(response.roles_size(), 2);
  EXPECT_EQ(response.roles(0).role(), "self");
  EXPECT_EQ(response.roles(0).would_run(), "FLASH_ATTN");
  EXPECT_EQ(response.roles(0).spec().q_len(), 128);
  EXPECT_EQ(response.roles(0).candidates(1).why_not(), "not in this build");
  EXPECT_EQ(response.roles(1).would_run(), "");
  EXPECT_EQ(response.roles(1).error(), "nothing can serve");
  request.set_model("missing");
  EXPECT_EQ(Call(admin_, &Stub::ExplainSelection, request, &response).error_code(),
            Code::NOT_FOUND);
}

TEST_F(AdminServiceTest, LogLevelIsSetAndUnknownLevelsAreRefused) {
  v1::SetLogLevelRequest request;
  request.set_level("error");
  v1::SetLogLevelResponse response;
  ASSERT_TRUE(Call(admin_, &Stub::SetLogLevel, request, &response).ok());
  EXPECT_EQ(response.previous_level(), "info");
  EXPECT_EQ(logger_.level(), LogLevel::kError);
  request.set_level("loud");
  EXPECT_EQ(Field(Call(admin_, &Stub::SetLogLevel, request, &response)), "level");
}

TEST_F(AdminServiceTest, AdminMethodsAreNotOnThePublicPort) {
  const auto* service = v1::Lease::descriptor()->file()->service(0);
  ASSERT_GT(service->method_count(), 5);
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string name = service->method(i)->name();
    for (const std::string& path :
         {"/denoised.v1.AdminService/" + name, "//denoised.v1.AdminService/" + name,
          "/denoised.v1.AdminService/" + name + "/", "/Denoised.v1.AdminService/" + name,
          "/denoised.v1.%41dminService/" + name, "/denoised.v1.AdminService/" + name + "?x"}) {
      EXPECT_EQ(CallByName(channel_, path), Code::UNIMPLEMENTED) << path;
    }
  }
  EXPECT_EQ(CallByName(admin_channel_, "/denoised.v1.GenerationService/SubmitJob"),
            Code::UNIMPLEMENTED);
}

TEST_F(AdminServiceTest, DrainTurnsEverythingOffButTheRunningWork) {
  httplib::Client http("http://" + server_->http_address());
  grpc::health::v1::HealthCheckRequest check;
  grpc::health::v1::HealthCheckResponse health;
  for (const char* service : {"", "denoised.v1.GenerationService", "denoised.v1.DenoiseService"}) {
    check.set_service(service);
    ASSERT_TRUE(Call(health_, &grpc::health::v1::Health::Stub::Check, check, &health).ok());
    EXPECT_EQ(health.status(), grpc::health::v1::HealthCheckResponse::SERVING);
  }
  EXPECT_TRUE(Eventually([&] { return http.Get("/readyz")->status == 200; }));
  const std::string id = SubmitPrompt("p");
  v1::DrainResponse response;
  ASSERT_TRUE(Call(admin_, &Stub::Drain, v1::DrainRequest(), &response).ok());
  EXPECT_EQ(response.queued(), 1);
  EXPECT_EQ(response.running(), 1);
  ASSERT_TRUE(Call(admin_, &Stub::Drain, v1::DrainRequest(), &response).ok()) << "idempotent";
  v1::Job job;
  const grpc::Status refused = Submit(v1::GenerationRequest(), &job);
  EXPECT_EQ(refused.error_code(), Code::UNAVAILABLE);
  EXPECT_EQ(Reason(refused), "DRAINING");
  ASSERT_TRUE(Call(health_, &grpc::health::v1::Health::Stub::Check, check, &health).ok());
  EXPECT_EQ(health.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(http.Get("/readyz")->status, 503);
  EXPECT_EQ(http.Get("/readyz")->body, "draining\n");
  EXPECT_EQ(http.Get("/healthz")->status, 200);
  v1::GetJobRequest get;
  get.set_job_id(id);
  EXPECT_TRUE(Call(generation_, &v1::GenerationService::Stub::GetJob, get, &job).ok());
}

TEST_F(AdminServiceTest, ServerStopsWhileStreamsAreOpen) {
  const std::string id = SubmitPrompt("p");
  grpc::ClientContext watch_context, hold_context;
  v1::WatchJobRequest watch;
  watch.set_job_id(id);
  const auto watcher = generation_->WatchJob(&watch_context, watch);
  v1::HoldBackendRequest hold;
  hold.set_backend("REFERENCE");
  const auto holder = admin_->HoldBackend(&hold_context, hold);
  v1::Job job;
  v1::Lease lease;
  ASSERT_TRUE(watcher->Read(&job));
  ASSERT_TRUE(holder->Read(&lease));
  const auto start = std::chrono::steady_clock::now();
  server_.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4));
  EXPECT_FALSE(watcher->Finish().ok());
  EXPECT_TRUE(holder->Finish().ok());
}

TEST_F(AdminServiceTest, PagesAreReadOnly) {
  httplib::Client http("http://" + server_->http_address());
  SubmitPrompt("p");
  const auto metrics = http.Get("/metrics");
  EXPECT_EQ(metrics->status, 200);
  EXPECT_THAT(metrics->get_header_value("Content-Type"), HasSubstr("version=0.0.4"));
  EXPECT_THAT(metrics->body,
              HasSubstr("denoised_rpc_seconds_count{code=\"OK\",method=\"SubmitJob\"} 1"));
  EXPECT_THAT(metrics->body, HasSubstr("denoised_queue_depth 1"));
  EXPECT_EQ(http.Post("/metrics", "", "text/plain")->status, 405);
  EXPECT_EQ(http.Delete("/healthz")->status, 405);
  EXPECT_EQ(http.Get("/other")->status, 404);
  EXPECT_EQ(http.Get("/metrics/../../etc/passwd")->status, 404);
}

TEST_F(AdminServiceTest, LiveForcesAreOnTheMetricsPage) {
  v1::Lease lease;
  ASSERT_TRUE(ForceBackend("REFERENCE", &lease).ok());
  httplib::Client http("http://" + server_->http_address());
  const std::string line = "denoised_lease_active{backend=\"REFERENCE\",scope=\"server\"} ";
  EXPECT_THAT(http.Get("/metrics")->body, HasSubstr(line + "1"));
  engine_->policy().Clear();
  EXPECT_THAT(http.Get("/metrics")->body, HasSubstr(line + "0"));
}

TEST_F(AdminServiceTest, TakenPortIsNamed) {
  for (int which = 0; which < 3; ++which) {
    Config config;
    config.listen = config.admin_listen = config.http_listen = {"127.0.0.1", 0};
    ListenAddress* addresses[] = {&config.listen, &config.admin_listen, &config.http_listen};
    const std::string taken[] = {server_->address(), server_->admin_address(),
                                 server_->http_address()};
    const char* names[] = {"listen", "admin_listen", "http_listen"};
    addresses[which]->port = std::stoi(taken[which].substr(taken[which].rfind(':') + 1));
    try {
      const Server second(config, &logger_, kDescriptors);
      ADD_FAILURE() << "two servers on " << taken[which];
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), names[which]);
      EXPECT_THAT(error.what(), HasSubstr(std::string("--") + names[which] + ": "));
      EXPECT_THAT(error.what(), HasSubstr(taken[which] + ": Address already in use"));
    }
  }
}

TEST_F(AdminServiceTest, ModelsAreListedWithTheirDefaults) {
  ModelInfo model;
  model.name = "tiny";
  model.is_default = true;
  model.has_gate = true;
  model.defaults.height = 96;
  engine_->SetModels({model}, {{"other", "LFS_POINTER", "other/x: is a pointer of Git LFS"}});
  v1::ListModelsResponse response;
  ASSERT_TRUE(
      Call(models_, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), &response).ok());
  ASSERT_EQ(response.models_size(), 1);
  EXPECT_EQ(response.models(0).name(), "tiny");
  EXPECT_TRUE(response.models(0).is_default());
  EXPECT_TRUE(response.models(0).has_gate());
  EXPECT_EQ(response.models(0).defaults().height(), 96);
  ASSERT_EQ(response.failed_size(), 1);
  EXPECT_EQ(response.failed(0).name(), "other");
  EXPECT_EQ(response.failed(0).reason(), "LFS_POINTER");
  EXPECT_THAT(response.failed(0).message(), HasSubstr("pointer of Git LFS"));
}

// ---- DenoiseService

class DenoiseServiceTest : public ServerFixture {
 protected:
  static void Fill(v1::Tensor* tensor, int64_t values) {
    tensor->set_dtype("float32");
    tensor->add_shape(values);
    tensor->set_data(std::string(static_cast<size_t>(values) * 4, 'x'));
  }
  static v1::DenoiseRequest Request() {
    v1::DenoiseRequest request;
    Fill(request.mutable_latents(), 8);
    Fill(request.mutable_timestep(), 1);
    Fill(request.mutable_encoder_hidden_states(), 4);
    return request;
  }
  grpc::Status Denoise(const v1::DenoiseRequest& request, v1::DenoiseResponse* response) {
    return Call(denoise_, &v1::DenoiseService::Stub::Denoise, request, response);
  }
};

TEST_F(DenoiseServiceTest, RequestAndReplyCrossUnchanged) {
  DenoiseResult result;
  result.tensor = {DType::kBFloat16, {2}, "abcd"};
  result.forward_seconds = 0.5;
  result.receipt.weights_digest = "d1";
  ReceiptEntry entry;
  entry.asked = AttnBackend::kSageAttn;
  entry.ran = entry.selection.granted.backend = AttnBackend::kTorchSdpa;
  entry.selection.refusals = {
      {SelectionSource::kRequest, AttnBackend::kSageAttn, "not in this build"}};
  entry.selection.granted.source = SelectionSource::kModelDefault;
  entry.parameters = R"({"tile":[4,4,4],"sparsity":0.5})";
  entry.calls = 3;
  result.receipt.entries = {entry};
  engine_->denoise_outcome = result;
  v1::DenoiseRequest request = Request();
  Fill(request.mutable_negative_encoder_hidden_states(), 4);
  request.set_guidance_scale(5);
  request.set_output(v1::NEXT_LATENTS);
  request.set_sigma(0.9);
  request.set_sigma_next(0.8);
  v1::DenoiseResponse response;
  ASSERT_TRUE(Denoise(request, &response).ok());
  const DenoiseRequest got = engine_->denoise_request();
  EXPECT_EQ(got.latents.data, request.latents().data());
  EXPECT_TRUE(got.negative_encoder_hidden_states.has_value());
  EXPECT_EQ(got.guidance_scale, 5);
  EXPECT_EQ(got.output, DenoiseRequest::Output::kNextLatents);
  EXPECT_EQ(got.sigma, 0.9);
  EXPECT_EQ(got.sigma_next, 0.8);
  EXPECT_TRUE(got.deadline.has_value());
  EXPECT_EQ(response.result().dtype(), "bfloat16");
  EXPECT_EQ(response.result().data(), "abcd");
  EXPECT_EQ(response.forward_seconds(), 0.5);
  ASSERT_EQ(response.receipt().entries_size(), 1);
  const v1::ReceiptEntry& row = response.receipt().entries(0);
  EXPECT_EQ(row.role(), "self");
  EXPECT_EQ(row.asked(), "SAGE_ATTN");
  EXPECT_EQ(row.ran(), "TORCH_SDPA");
  EXPECT_EQ(row.source(), "model_default") << "as types.proto spells it";
  EXPECT_EQ(row.parameters().fields().at("sparsity").number_value(), 0.5);
  EXPECT_EQ(row.parameters().fields().at("tile").list_value().values_size(), 3);
  EXPECT_FALSE(row.has_seconds()) << "not known is not 0";
  EXPECT_EQ(row.refusals(0).reason(), "not in this build");
  EXPECT_EQ(row.refusals(0).source(), "request");
  EXPECT_EQ(row.calls(), 3u);
}

TEST_F(DenoiseServiceTest, BadRequestsAreRefusedByField) {
  v1::DenoiseResponse response;
  v1::DenoiseRequest empty;
  EXPECT_EQ(Field(Denoise(empty, &response)), "latents.dtype");
  v1::DenoiseRequest short_timestep = Request();
  short_timestep.mutable_timestep()->set_data("x");
  EXPECT_EQ(Field(Denoise(short_timestep, &response)), "timestep.data");
  v1::DenoiseRequest no_sigma = Request();
  no_sigma.set_output(v1::NEXT_LATENTS);
  EXPECT_EQ(Field(Denoise(no_sigma, &response)), "sigma");
  v1::DenoiseRequest output = Request();
  output.set_output(static_cast<v1::DenoiseOutput>(9));
  EXPECT_EQ(Field(Denoise(output, &response)), "output");
}

TEST_F(DenoiseServiceTest, EngineRefusalBecomesTheStatus) {
  engine_->denoise_outcome = InvalidField("latents", "not finite");
  v1::DenoiseResponse response;
  const grpc::Status status = Denoise(Request(), &response);
  EXPECT_EQ(status.error_code(), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Field(status), "latents");
}

TEST_F(DenoiseServiceTest, ClientThatLeavesRaisesTheCancelToken) {
  engine_->hold_denoise = true;
  engine_->denoise_outcome = Error(StatusCode::kCancelled, "cancelled");
  grpc::ClientContext context;
  grpc::Status status;
  std::thread client([&] {
    v1::DenoiseResponse response;
    status = denoise_->Denoise(&context, Request(), &response);
  });
  ASSERT_TRUE(engine_->WaitForDenoise());
  EXPECT_FALSE(engine_->cancel_token().cancelled);
  context.TryCancel();
  client.join();
  EXPECT_EQ(status.error_code(), Code::CANCELLED);
  for (int i = 0; i < 2000 && !engine_->cancel_token().cancelled; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(engine_->cancel_token().cancelled);
  engine_->FinishDenoise();
}

}  // namespace
}  // namespace denoised
