// AdminService's calls that change which models serve, over a fake engine.
#include <httplib.h>

#include <future>

#include "tests/eventually.h"
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;
using Stub = v1::AdminService::Stub;

class AdminModelsTest : public ServerFixture {
 protected:
  grpc::Status Load(const std::string& name, v1::LoadModelResponse* response) {
    v1::LoadModelRequest request;
    request.set_name(name);
    request.set_reason("new weights");
    return Call(admin_, &Stub::LoadModel, request, response);
  }
  grpc::Status Unload(const std::string& name, bool force, v1::UnloadModelResponse* response) {
    v1::UnloadModelRequest request;
    request.set_name(name);
    request.set_force(force);
    return Call(admin_, &Stub::UnloadModel, request, response);
  }
};

TEST_F(AdminModelsTest, WhatTheEngineDidIsAnswered) {
  v1::LoadModelResponse loaded;
  ASSERT_TRUE(Load("tiny", &loaded).ok());
  EXPECT_EQ(loaded.model().name(), "tiny by ipv4, new weights");
  EXPECT_EQ(loaded.previous_model_digest(), "before");
  EXPECT_EQ(loaded.on_previous(), 2);
  EXPECT_FALSE(loaded.unchanged());
  v1::UnloadModelResponse unloaded;
  ASSERT_TRUE(Unload("tiny", true, &unloaded).ok());
  EXPECT_EQ(unloaded.ended_jobs(), 3);
  EXPECT_EQ(unloaded.ended_sessions(), 1);
  ASSERT_TRUE(Unload("tiny", false, &unloaded).ok());
  EXPECT_EQ(unloaded.ended_jobs(), 0);
}

TEST_F(AdminModelsTest, RefusalsKeepTheirCodesReasonsAndMessages) {
  struct Case {
    Error error;
    grpc::StatusCode code;
  };
  const Case cases[] = {
      {Error(StatusCode::kFailedPrecondition, "tiny/w: header is cut", "", "INVALID_MODEL"),
       grpc::StatusCode::FAILED_PRECONDITION},
      {Error(StatusCode::kNotFound, "name: no folder", "name", "MODEL_NOT_FOUND"),
       grpc::StatusCode::NOT_FOUND},
      {Error(StatusCode::kAborted, "another", "", "MODEL_CHANGING"), grpc::StatusCode::ABORTED},
      {Error(StatusCode::kResourceExhausted, "more than fits", "", "MEMORY"),
       grpc::StatusCode::RESOURCE_EXHAUSTED},
      {Error(StatusCode::kUnavailable, "it drains", "", "DRAINING"),
       grpc::StatusCode::UNAVAILABLE}};
  for (const auto& [error, code] : cases) {
    engine_->refuse_change = error;
    v1::LoadModelResponse loaded;
    v1::UnloadModelResponse unloaded;
    for (const grpc::Status& status : {Load("tiny", &loaded), Unload("tiny", false, &unloaded)}) {
      EXPECT_EQ(status.error_code(), code);
      EXPECT_EQ(status.error_message(), error.what());
      EXPECT_EQ(Reason(status), error.reason());
    }
  }
  v1::LoadModelRequest wordy;
  wordy.set_name("tiny");
  wordy.set_reason(std::string(300, 'x'));
  v1::LoadModelResponse loaded;
  const grpc::Status status = Call(admin_, &Stub::LoadModel, wordy, &loaded);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Field(status), "reason");
}

TEST_F(AdminModelsTest, ThePublicPortKnowsNoneOfThem) {
  const auto stub = v1::AdminService::NewStub(channel_);
  v1::LoadModelResponse loaded;
  EXPECT_EQ(Call(stub, &Stub::LoadModel, v1::LoadModelRequest(), &loaded).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(AdminModelsTest, ALongLoadHoldsNothingUpAndOutlivesItsCaller) {
  engine_->hold_load = true;
  grpc::ClientContext context;
  v1::LoadModelRequest request;
  request.set_name("tiny");
  auto answer = std::async(std::launch::async, [&] {
    v1::LoadModelResponse response;
    return admin_->LoadModel(&context, request, &response);
  });
  const auto done = engine_->TakePendingLoad();
  ASSERT_TRUE(done);
  v1::ListLeasesResponse leases;
  EXPECT_TRUE(Call(admin_, &Stub::ListLeases, v1::ListLeasesRequest(), &leases).ok());
  context.TryCancel();
  EXPECT_EQ(answer.get().error_code(), grpc::StatusCode::CANCELLED);
  done(ModelLoaded{});  // to nobody
}

TEST_F(AdminModelsTest, AStopDoesNotWaitForALoad) {
  engine_->hold_load = true;
  auto answer = std::async(std::launch::async, [&] {
    v1::LoadModelResponse response;
    return Load("tiny", &response);
  });
  const auto done = engine_->TakePendingLoad();
  ASSERT_TRUE(done);
  server_->Stop();
  EXPECT_FALSE(answer.get().ok());
  done(Error(StatusCode::kUnavailable, "it drains"));  // the engine's end
}

TEST_F(AdminModelsTest, ReadinessSaysWhetherAModelServesAndWhatFailedBesideIt) {
  httplib::Client http("http://" + server_->http_address());
  ModelInfo tiny;
  tiny.name = "tiny";
  const std::vector<FailedModel> failed = {{"broken", "LFS_POINTER", "a pointer"},
                                           {"tiny", "INVALID_MODEL", "tiny/w: header is cut"}};
  engine_->SetModels({tiny}, failed);
  std::string ready;
  EXPECT_TRUE(Eventually([&] {
    const auto answer = http.Get("/readyz");
    ready = answer->body;
    return answer->status == 200;
  }));
  EXPECT_THAT(ready, HasSubstr("\nnot loaded: broken: LFS_POINTER"));
  EXPECT_THAT(ready, HasSubstr("\nnot loaded, an earlier one serves: tiny: INVALID_MODEL: "
                               "tiny/w: header is cut"));
  engine_->SetModels({}, failed);
  EXPECT_EQ(http.Get("/readyz")->status, 503);
  EXPECT_THAT(http.Get("/readyz")->body, HasSubstr("no model is loaded"));
}

}  // namespace
}  // namespace denoised
