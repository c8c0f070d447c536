// WatchAudit over a real channel: what operators did, in order, from any entry on.
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Code = grpc::StatusCode;
using Stub = v1::AdminService::Stub;

class AuditStreamTest : public ServerFixture {
 protected:
  using Reader = std::unique_ptr<grpc::ClientReader<v1::AuditEvent>>;

  Reader Watch(grpc::ClientContext* context, uint64_t after, bool follow) {
    v1::WatchAuditRequest request;
    request.set_after(after);
    request.set_follow(follow);
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    return admin_->WatchAudit(context, request);
  }
  std::vector<v1::AuditEvent> All(uint64_t after = 0) {
    grpc::ClientContext context;
    const Reader reader = Watch(&context, after, false);
    std::vector<v1::AuditEvent> events;
    for (v1::AuditEvent event; reader->Read(&event);) events.push_back(event);
    EXPECT_TRUE(reader->Finish().ok());
    return events;
  }
  static std::vector<std::string> What(const std::vector<v1::AuditEvent>& events) {
    std::vector<std::string> what;
    for (const v1::AuditEvent& event : events) what.push_back(event.what());
    return what;
  }
  void SetLevel(const std::string& level) {
    v1::SetLogLevelRequest request;
    request.set_level(level);
    v1::SetLogLevelResponse response;
    EXPECT_TRUE(Call(admin_, &Stub::SetLogLevel, request, &response).ok());
  }
  v1::Lease Force() {
    v1::ForceBackendRequest request;
    request.set_backend("REFERENCE");
    request.set_reason("checking");
    request.mutable_ttl()->set_seconds(60);
    v1::Lease lease;
    EXPECT_TRUE(Call(admin_, &Stub::ForceBackend, request, &lease).ok());
    return lease;
  }
};

TEST_F(AuditStreamTest, EveryChangeIsListedInOrderWithWhoMadeIt) {
  EXPECT_THAT(All(), IsEmpty());
  const v1::Lease lease = Force();
  v1::ReleaseForceRequest release;
  release.set_lease_id(lease.id());
  v1::ReleaseForceResponse released;
  ASSERT_TRUE(Call(admin_, &Stub::ReleaseForce, release, &released).ok());
  SetLevel("debug");
  v1::DrainResponse drained;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Call(admin_, &Stub::Drain, v1::DrainRequest(), &drained).ok());
  }
  const auto events = All();
  ASSERT_THAT(What(events), ElementsAre("force", "release", "log_level", "drain"))
      << "a second drain changes nothing";
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].number(), i + 1);
    EXPECT_THAT(events[i].who(), HasSubstr("127.0.0.1"));
    EXPECT_GT(events[i].time().seconds(), 0);
  }
  EXPECT_EQ(events[0].subject(), lease.id());
  EXPECT_EQ(events[0].reason(), "checking");
  EXPECT_THAT(events[0].new_(), HasSubstr("REFERENCE"));
  EXPECT_TRUE(events[0].has_ends_at());
  EXPECT_THAT(events[1].old(), HasSubstr("REFERENCE"));
  EXPECT_EQ(events[2].old(), "info");
  EXPECT_EQ(events[2].new_(), "debug");
  EXPECT_FALSE(events[3].has_ends_at());
}

TEST_F(AuditStreamTest, AHoldIsToldWithItsEnd) {
  {
    grpc::ClientContext context;
    v1::HoldBackendRequest request;
    request.set_backend("REFERENCE");
    const auto holder = admin_->HoldBackend(&context, request);
    v1::Lease lease;
    ASSERT_TRUE(holder->Read(&lease));
    context.TryCancel();
  }
  grpc::ClientContext context;
  const Reader reader = Watch(&context, 0, true);
  v1::AuditEvent event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_THAT(event.new_(), HasSubstr("held"));
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.what(), "end");
  EXPECT_THAT(event.reason(), HasSubstr("holder_left"));
  EXPECT_THAT(event.who(), HasSubstr("127.0.0.1"));
  context.TryCancel();
}

TEST_F(AuditStreamTest, AFollowerSeesWhatComesAndGoesOnWhereItLeft) {
  SetLevel("debug");
  uint64_t last = 0;
  {
    grpc::ClientContext context;
    const Reader reader = Watch(&context, 0, true);
    v1::AuditEvent event;
    ASSERT_TRUE(reader->Read(&event));
    EXPECT_EQ(event.new_(), "debug");
    SetLevel("warning");
    ASSERT_TRUE(reader->Read(&event));
    EXPECT_EQ(event.new_(), "warning");
    last = event.number();
    context.TryCancel();
  }
  SetLevel("error");
  grpc::ClientContext context;
  const Reader reader = Watch(&context, last, true);
  v1::AuditEvent event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.new_(), "error");
  EXPECT_EQ(event.number(), last + 1);
  context.TryCancel();
}

TEST_F(AuditStreamTest, PagesAreReadToTheirEnd) {
  for (int i = 0; i < 200; ++i) engine_->audit().Write({.subject = std::to_string(i)});
  EXPECT_THAT(All(), SizeIs(200));
  const auto events = All(150);
  ASSERT_THAT(events, SizeIs(50));
  EXPECT_EQ(events.front().number(), 151u);
  EXPECT_THAT(All(200), IsEmpty());
  EXPECT_THAT(All(UINT64_MAX), IsEmpty());
}

TEST_F(AuditStreamTest, AFollowerThatNeverReadsHoldsUpNeitherWritersNorOtherReadersNorTheStop) {
  grpc::ClientContext context;
  const Reader sleeper = Watch(&context, 0, true);
  const std::string text(1000, 'x');
  for (int i = 0; i < 3000; ++i) engine_->audit().Write({.new_value = text});
  EXPECT_THAT(All(), SizeIs(3000));
  const auto start = std::chrono::steady_clock::now();
  server_.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4));
  context.TryCancel();
}

TEST_F(AuditStreamTest, TheLogLevelIsSetWhileModelsLoad) {
  Server loading(TestConfig(), &logger_, kDescriptors);
  loading.Start([&](const EngineOptions&, Observer*, Logger*) {
    const auto admin = v1::AdminService::NewStub(MakeChannel(loading.admin_address()));
    v1::SetLogLevelRequest request;
    request.set_level("error");
    v1::SetLogLevelResponse response;
    EXPECT_TRUE(Call(admin, &Stub::SetLogLevel, request, &response).ok());
    grpc::ClientContext context;
    EXPECT_EQ(Reason(admin->WatchAudit(&context, v1::WatchAuditRequest())->Finish()), "LOADING");
    return std::make_unique<FakeEngine>();
  });
  EXPECT_EQ(logger_.level(), LogLevel::kError);
}

}  // namespace
}  // namespace denoised
