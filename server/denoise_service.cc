#include "server/denoise_service.h"

#include <utility>

#include "server/call.h"
#include "server/convert.h"

namespace denoised {
namespace {

// One call under way. Lives until gRPC is done with it, which is after Finish.
class DenoiseCall : public grpc::ServerUnaryReactor {
 public:
  DenoiseCall(const CallTimer& timer, grpc::ByteBuffer* out) : timer_(timer), out_(out) {}

  void Run(Engine* engine, DenoiseRequest request) {
    engine->Denoise(std::move(request), cancel_,
                    [this](Engine::DenoiseOutcome outcome) { Answer(std::move(outcome)); });
  }

  void End(const grpc::Status& status) {
    timer_.Done(status);
    Finish(status);
  }

  void OnCancel() override { cancel_->cancelled = true; }
  void OnDone() override { delete this; }

 private:
  void Answer(Engine::DenoiseOutcome outcome) {
    const grpc::Status status = StatusOf([&] {
      if (const Error* error = std::get_if<Error>(&outcome)) throw *error;
      *out_ = SerializeMessage(ToProto(std::get<DenoiseResult>(std::move(outcome))));
    });
    End(status);
  }

  const CallTimer timer_;
  grpc::ByteBuffer* const out_;
  const std::shared_ptr<CancelToken> cancel_ = std::make_shared<CancelToken>();
};

}  // namespace

grpc::ServerUnaryReactor* DenoiseService::Denoise(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* in,
                                                  grpc::ByteBuffer* out) {
  auto* call = new DenoiseCall(CallTimer(metrics_, "Denoise"), out);
  DenoiseRequest request;
  const grpc::Status status = StatusOf([&] {
    v1::DenoiseRequest message;
    ParseMessage(*in, &message);
    request = FromProto(std::move(message));
    request.deadline = SteadyDeadline(context->deadline());
  });
  if (status.ok()) {
    call->Run(engine_, std::move(request));
  } else {
    call->End(status);
  }
  return call;
}

}  // namespace denoised
