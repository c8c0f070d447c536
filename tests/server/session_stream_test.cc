// DenoiseService.Session on the wire: what is read ahead, what is answered, how the stream ends.
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

class SessionStreamTest : public ServerFixture {
 protected:
  SessionStreamTest() {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    stream_ = denoise_->Session(&context_);
  }

  void Send(uint64_t tag, const std::function<void(v1::SessionRequest&)>& verb,
            const std::string& id = "") {
    v1::SessionRequest request;
    request.set_tag(tag);
    request.set_session_id(id);
    verb(request);
    EXPECT_TRUE(stream_->Write(request));
  }
  v1::SessionResponse Read() {
    v1::SessionResponse response;
    EXPECT_TRUE(stream_->Read(&response)) << "the stream has ended";
    return response;
  }
  v1::SessionResponse Open() {
    Send(1, [](auto& r) { r.mutable_open()->set_prompt("a session"); });
    return Read();
  }
  // The end, after what is still to be read.
  grpc::Status End() {
    v1::SessionResponse response;
    while (stream_->Read(&response)) {
    }
    return stream_->Finish();
  }
  // Does the oldest verb that waits.
  void Answer(SessionReply reply = {}) {
    auto asked = engine_->NextAsked();
    ASSERT_TRUE(asked) << "nothing was asked";
    reply.state.id = asked->id;
    asked->done(std::move(reply));
  }
  static void Step(v1::SessionRequest& request) { request.mutable_step()->set_count(3); }
  static void ReadLatents(v1::SessionRequest& request) { request.mutable_read(); }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream_;
};

TEST_F(SessionStreamTest, EveryRequestIsAnsweredWithItsTagAndTheStreamEndsWhenTheClientIsDone) {
  const v1::SessionResponse opened = Open();
  EXPECT_EQ(opened.tag(), 1u);
  EXPECT_TRUE(opened.has_opened());
  EXPECT_EQ(opened.session_id(), "session1");
  EXPECT_EQ(engine_->session_request().generation.prompt, "a session");
  Send(7, Step);
  Send(8, ReadLatents, "session1");
  ASSERT_TRUE(engine_->WaitForVerbs(2));
  SessionReply stepped;
  stepped.state.step = 3;
  stepped.receipt = Receipt{};
  Answer(stepped);
  SessionReply read;
  read.latents = HostTensor{DType::kFloat32, {1}, "abcd"};
  Answer(read);
  const v1::SessionResponse first = Read(), second = Read();
  EXPECT_EQ(first.tag(), 7u);
  EXPECT_EQ(first.session_id(), "session1");
  EXPECT_TRUE(first.has_stepped());
  EXPECT_EQ(first.step(), 3);
  EXPECT_EQ(second.tag(), 8u);
  EXPECT_EQ(second.latents().data(), "abcd");
  stream_->WritesDone();
  EXPECT_TRUE(End().ok());
  EXPECT_TRUE(engine_->WaitForLeft());
}

TEST_F(SessionStreamTest, BadRequestsAreAnsweredByNameAndTheStreamGoesOn) {
  Open();
  Send(2, [](auto&) {});
  EXPECT_EQ(Read().error().field(), "verb");
  Send(
      3, [](auto& r) { r.mutable_open(); }, "session1");
  EXPECT_EQ(Read().error().field(), "session_id");
  Send(4, [](auto& r) { r.mutable_write()->mutable_latents()->set_dtype("float31"); });
  const v1::SessionResponse write = Read();
  EXPECT_EQ(write.error().field(), "latents.dtype");
  EXPECT_EQ(write.tag(), 4u);
  Send(5, [](auto& r) { r.set_session_id(std::string(1 << 18, 'x')); });
  EXPECT_EQ(Read().error().field(), "session_id") << "over the budget of a field";
  Send(6, Step);
  Answer();
  EXPECT_EQ(Read().tag(), 6u);
}

TEST_F(SessionStreamTest, AnOpenThatIsRefusedEndsAStreamWithoutSessions) {
  engine_->refuse_session = InvalidField("height", "must be a multiple");
  Send(1, [](auto& r) { r.mutable_open(); });
  const grpc::Status status = End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("height"));
}

TEST_F(SessionStreamTest, AnOpenThatIsRefusedBesideASessionIsAnswered) {
  Open();
  engine_->refuse_session = InvalidField("height", "must be a multiple");
  Send(2, [](auto& r) { r.mutable_open(); });
  EXPECT_EQ(Read().error().field(), "height");
  Send(3, Step);
  Answer();
  EXPECT_EQ(Read().tag(), 3u);
}

TEST_F(SessionStreamTest, NoMoreIsReadThanMayBeAnswered) {
  Open();
  for (uint64_t tag = 0; tag < 20; ++tag) Send(tag, Step);
  ASSERT_TRUE(engine_->WaitForVerbs(16));
  Answer();
  Read();
  ASSERT_TRUE(engine_->WaitForVerbs(17)) << "one answer makes room for one request";
  EXPECT_EQ(engine_->verbs(), 17);
}

TEST_F(SessionStreamTest, WhatCarriesLatentsIsNotReadAheadOf) {
  Open();
  Send(1, ReadLatents);
  Send(2, Step);
  ASSERT_TRUE(engine_->WaitForVerbs(1));
  EXPECT_EQ(engine_->verbs(), 1);
  Answer();
  EXPECT_EQ(Read().tag(), 1u);
  EXPECT_TRUE(engine_->WaitForVerbs(2));
}

TEST_F(SessionStreamTest, ClosingTheLastSessionEndsTheStreamAfterItsAnswer) {
  Open();
  Send(1, [](auto& r) { r.mutable_fork(); });
  SessionReply forked;
  forked.forked = "a fork";
  Answer(forked);
  const v1::SessionResponse fork = Read();
  EXPECT_EQ(fork.session_id(), "a fork");
  EXPECT_EQ(fork.forked().parent_id(), "session1");
  Send(2, [](auto& r) { r.mutable_close(); });
  Answer();
  EXPECT_TRUE(Read().has_closed());
  Send(
      3, [](auto& r) { r.mutable_close(); }, "a fork");
  Answer();
  EXPECT_EQ(Read().session_id(), "a fork");
  EXPECT_TRUE(End().ok());
}

TEST_F(SessionStreamTest, WhereTheEngineEndsThemTheStreamSaysWhyAfterTheLastAnswer) {
  Open();
  Send(1, Step);
  ASSERT_TRUE(engine_->WaitForVerbs(1));
  engine_->session_owner()->ended(Error(StatusCode::kAborted, "idle", "", "SESSION_IDLE"));
  Answer();
  EXPECT_EQ(Read().tag(), 1u);
  EXPECT_EQ(End().error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(SessionStreamTest, AClientThatLeavesFreesItsSessionsWhateverIsUnderWay) {
  Open();
  Send(1, Step);
  ASSERT_TRUE(engine_->WaitForVerbs(1));
  context_.TryCancel();
  EXPECT_TRUE(engine_->WaitForLeft());
  EXPECT_EQ(End().error_code(), grpc::StatusCode::CANCELLED);
  Answer();  // comes too late, to nobody
}

}  // namespace
}  // namespace denoised
