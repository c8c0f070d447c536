#include "server/denoise_service.h"

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "server/call.h"
#include "server/convert.h"
#include "server/session_stream.h"

namespace denoised {
namespace {

// One call under way: to the work pool, to the engine, and back. Owns itself until gRPC is done
// with it; the engine's answer may come later than that, to a call that the client has left.
class DenoiseCall : public grpc::ServerUnaryReactor,
                    public std::enable_shared_from_this<DenoiseCall> {
 public:
  DenoiseCall(const CallTimer& timer, WorkPool* answers, grpc::ByteBuffer* out)
      : timer_(timer), answers_(answers), out_(out) {}

  void Hold(OpenCalls::Ticket ticket) {
    ticket_ = std::move(ticket);
    self_ = shared_from_this();
  }

  // On the work pool.
  void Run(Engine* engine, const grpc::ByteBuffer& bytes,
           std::optional<std::chrono::steady_clock::time_point> deadline) {
    DenoiseRequest request;
    const grpc::Status status = StatusOf([&] {
      v1::DenoiseRequest message;
      ParseMessage(bytes, &message);
      request = FromProto(std::move(message));
      request.deadline = deadline;
    });
    if (!status.ok()) return End(status, {});
    engine->Denoise(std::move(request), cancel_,
                    [call = shared_from_this()](Engine::DenoiseOutcome outcome) {
                      call->AnswerLater(std::move(outcome));
                    });
  }

  // The first end counts.
  void End(const grpc::Status& status, grpc::ByteBuffer answer) {
    {
      std::lock_guard lock(mutex_);
      if (ended_) return;
      ended_ = true;
      *out_ = std::move(answer);
    }
    timer_.Done(status);
    Finish(status);
  }

  // Answered at once: a stop must not wait for the step.
  void OnCancel() override {
    cancel_->cancelled = true;
    End(grpc::Status(grpc::StatusCode::CANCELLED, "the client left or its deadline passed"), {});
  }
  void OnDone() override {
    ticket_.reset();  // the engine may hold the rest for longer
    self_.reset();
  }

 private:
  // The engine's thread does not wait until an answer is written.
  void AnswerLater(Engine::DenoiseOutcome outcome) {
    const auto* const result = std::get_if<DenoiseResult>(&outcome);
    const size_t bytes = result == nullptr ? 0 : result->tensor.data.size();
    const auto kept = std::make_shared<Engine::DenoiseOutcome>(std::move(outcome));
    const auto answer = [call = shared_from_this(), kept] { call->Answer(std::move(*kept)); };
    if (!answers_->Post(bytes, answer)) answer();
  }
  void Answer(Engine::DenoiseOutcome outcome) {
    grpc::ByteBuffer answer;
    const grpc::Status status = StatusOf([&] {
      if (const Error* error = std::get_if<Error>(&outcome)) throw *error;
      answer = SerializeMessage(ToProto(std::get<DenoiseResult>(std::move(outcome))));
    });
    End(status, std::move(answer));
  }

  const CallTimer timer_;
  WorkPool* const answers_;
  grpc::ByteBuffer* const out_;
  const std::shared_ptr<CancelToken> cancel_ = std::make_shared<CancelToken>();
  OpenCalls::Ticket ticket_;
  std::shared_ptr<DenoiseCall> self_;
  std::mutex mutex_;
  bool ended_ = false;  // guarded by mutex_
};

}  // namespace

grpc::ServerUnaryReactor* DenoiseService::Denoise(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* in,
                                                  grpc::ByteBuffer* out) {
  const auto call = std::make_shared<DenoiseCall>(CallTimer(context, with_.metrics, "Denoise"),
                                                  with_.answers, out);
  call->Hold(nullptr);
  const grpc::Status status = StatusOf([&] {
    Engine* const engine = &with_.gate->Require();
    call->Hold(with_.open_calls->Enter(context->peer()));
    const auto deadline = SteadyDeadline(context->deadline());
    const bool posted = with_.pool->Post(in->Length(), [call, engine, bytes = *in, deadline] {
      call->Run(engine, bytes, deadline);
    });
    if (!posted) throw TooBusy();
  });
  if (!status.ok()) call->End(status, {});
  return call.get();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* DenoiseService::Session(
    grpc::CallbackServerContext* context) {
  const auto stream =
      std::make_shared<SessionStream>(CallTimer(context, with_.metrics, "Session"), with_.pool);
  stream->Hold();
  const grpc::Status status = StatusOf([&] {
    Engine* const engine = &with_.gate->Require();
    stream->Start(engine, with_.open_calls->Enter(context->peer()));
  });
  if (!status.ok()) stream->Refuse(status);
  return stream.get();
}

}  // namespace denoised
