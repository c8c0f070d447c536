// A whole Server around a fake engine, on free loopback ports, with stubs of every service.
#ifndef DENOISED_TESTS_SERVER_SERVER_FIXTURE_H_
#define DENOISED_TESTS_SERVER_SERVER_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/server.h"
#include "tests/server/fake_engine.h"

namespace denoised {

class ServerFixture : public ::testing::Test {
 protected:
  ServerFixture() : null_(std::fopen("/dev/null", "w")), logger_(null_) {
    server_ = std::make_unique<Server>(TestConfig(), &logger_, kDescriptors);
    server_->Start([this](const EngineOptions&, Observer*, Logger*) {
      auto engine = std::make_unique<FakeEngine>();
      engine_ = engine.get();
      return engine;
    });
    channel_ = MakeChannel(server_->address());
    admin_channel_ = MakeChannel(server_->admin_address());
    generation_ = v1::GenerationService::NewStub(channel_);
    denoise_ = v1::DenoiseService::NewStub(channel_);
    models_ = v1::ModelService::NewStub(channel_);
    admin_ = v1::AdminService::NewStub(admin_channel_);
    health_ = grpc::health::v1::Health::NewStub(channel_);
  }
  ~ServerFixture() override {
    server_.reset();
    logger_.Flush(std::chrono::seconds(20));
    std::fclose(null_);
  }

  // Before a call whose deadline is short: connecting takes from it.
  void Connect() {
    ASSERT_TRUE(
        channel_->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(20)));
  }

  static constexpr int64_t kDescriptors = 4096;
  static Config TestConfig() {
    Config config;
    config.listen = config.admin_listen = config.http_listen = {"127.0.0.1", 0};
    config.max_message_bytes = 4 << 20;
    config.max_streams_per_connection = 64;
    return config;
  }

  static std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
    static int number = 0;
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt("test.channel", ++number);  // channels with equal arguments share a connection
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }

  // A unary call.
  template <typename Stub, typename Request, typename Response>
  grpc::Status Call(const std::unique_ptr<Stub>& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    return ((*stub).*method)(&context, request, response);
  }

  grpc::Status Submit(const v1::GenerationRequest& request, v1::Job* job) {
    return Call(generation_, &v1::GenerationService::Stub::SubmitJob, request, job);
  }
  std::string SubmitPrompt(const std::string& prompt) {
    v1::GenerationRequest request;
    request.set_prompt(prompt);
    v1::Job job;
    EXPECT_TRUE(Submit(request, &job).ok());
    return job.id();
  }

  static google::rpc::Status Details(const grpc::Status& status) {
    google::rpc::Status details;
    EXPECT_TRUE(details.ParseFromString(status.error_details()));
    EXPECT_EQ(details.code(), status.error_code());
    return details;
  }
  // The first detail of that type, or an empty one.
  template <typename Detail>
  static Detail Find(const grpc::Status& status) {
    const google::rpc::Status details = Details(status);
    Detail detail;
    for (const auto& any : details.details()) {
      if (any.UnpackTo(&detail)) break;
    }
    return detail;
  }
  static std::string Reason(const grpc::Status& status) {
    return Find<google::rpc::ErrorInfo>(status).reason();
  }
  static std::string Field(const grpc::Status& status) {
    const auto bad = Find<google::rpc::BadRequest>(status);
    return bad.field_violations().empty() ? "" : bad.field_violations(0).field();
  }

  std::FILE* const null_;
  Logger logger_;
  FakeEngine* engine_ = nullptr;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_, admin_channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::DenoiseService::Stub> denoise_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_SERVER_SERVER_FIXTURE_H_
