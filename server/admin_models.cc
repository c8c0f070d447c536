// The part of AdminService that changes which models serve: answered when the engine has done it,
// by a thread of the engine's.
#include <memory>
#include <utility>

#include "server/admin_service.h"
#include "server/call.h"
#include "server/convert.h"
#include "server/owned_call.h"

namespace denoised {
namespace {

// A call that ended without its answer: the change goes on all the same.
class ModelCall : public OwnedCall {
 public:
  using OwnedCall::OwnedCall;

  // At once: a stop does not wait for the engine.
  void OnCancel() override {
    End(grpc::Status(grpc::StatusCode::CANCELLED,
                     "the client left or its deadline passed; the change goes on"),
        {});
  }
};

// `ask(change, done)` hands the request to the engine.
template <typename Request, typename Ask>
grpc::ServerUnaryReactor* Change(const CallContext& with, grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* in, grpc::ByteBuffer* out,
                                 std::string_view method, const Ask& ask) {
  const auto call = std::make_shared<ModelCall>(CallTimer(context, with.metrics, method), out);
  call->Hold();
  const grpc::Status status = StatusOf([&] {
    Request request;
    ParseMessage(*in, &request);
    call->Keep(with.open_calls->Enter(context->peer()));
    ask(FromProto(request, context->peer()),
        [call](const auto& outcome) { call->Answer(outcome); });
  });
  if (!status.ok()) call->End(status, {});
  return call.get();
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::LoadModel(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* in,
                                                  grpc::ByteBuffer* out) {
  return Change<v1::LoadModelRequest>(
      with_, context, in, out, "LoadModel",
      [this](ModelChange change, auto done) { engine().LoadModel(std::move(change), done); });
}

grpc::ServerUnaryReactor* AdminService::UnloadModel(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* in,
                                                    grpc::ByteBuffer* out) {
  return Change<v1::UnloadModelRequest>(
      with_, context, in, out, "UnloadModel",
      [this](ModelChange change, auto done) { engine().UnloadModel(std::move(change), done); });
}

}  // namespace denoised
