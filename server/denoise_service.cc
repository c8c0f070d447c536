#include "server/denoise_service.h"

#include <memory>
#include <optional>
#include <utility>

#include "server/call.h"
#include "server/convert.h"
#include "server/owned_call.h"
#include "server/session_stream.h"

namespace denoised {
namespace {

// One call under way: to the work pool, to the engine, and back.
class DenoiseCall : public OwnedCall {
 public:
  DenoiseCall(const CallTimer& timer, WorkPool* answers, grpc::ByteBuffer* out)
      : OwnedCall(timer, out), answers_(answers) {}

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
                    [this, self = shared_from_this()](Engine::DenoiseOutcome outcome) {
                      AnswerLater(std::move(outcome));
                    });
  }

  // Answered at once: a stop must not wait for the step.
  void OnCancel() override {
    cancel_->cancelled = true;
    End(grpc::Status(grpc::StatusCode::CANCELLED, "the client left or its deadline passed"), {});
  }

 private:
  // The engine's thread does not wait until an answer is written.
  void AnswerLater(Engine::DenoiseOutcome outcome) {
    const auto* const result = std::get_if<DenoiseResult>(&outcome);
    const size_t bytes = result == nullptr ? 0 : result->tensor.data.size();
    const auto kept = std::make_shared<Engine::DenoiseOutcome>(std::move(outcome));
    const auto answer = [this, self = shared_from_this(), kept] {
      Answer<DenoiseResult>(std::move(*kept));
    };
    if (!answers_->Post(bytes, answer)) answer();
  }

  WorkPool* const answers_;
  const std::shared_ptr<CancelToken> cancel_ = std::make_shared<CancelToken>();
};

}  // namespace

grpc::ServerUnaryReactor* DenoiseService::Denoise(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* in,
                                                  grpc::ByteBuffer* out) {
  const auto call = std::make_shared<DenoiseCall>(CallTimer(context, with_.metrics, "Denoise"),
                                                  with_.answers, out);
  call->Hold();
  const grpc::Status status = StatusOf([&] {
    Engine* const engine = &with_.gate->Require();
    call->Keep(with_.open_calls->Enter(context->peer()));
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
