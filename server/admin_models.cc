// The part of AdminService that changes which models serve: answered when the engine has done it,
// by a thread of the engine's.
#include <memory>
#include <mutex>
#include <utility>
#include <variant>

#include "server/admin_service.h"
#include "server/call.h"
#include "server/convert.h"

namespace denoised {
namespace {

// One call under way. Owns itself until gRPC is done with it; the engine's answer may come later,
// to a call that the client has left: the change goes on all the same.
class ModelCall : public grpc::ServerUnaryReactor, public std::enable_shared_from_this<ModelCall> {
 public:
  ModelCall(const CallTimer& timer, grpc::ByteBuffer* out) : timer_(timer), out_(out) {}

  void Hold() { self_ = shared_from_this(); }
  void Keep(OpenCalls::Ticket ticket) { ticket_ = std::move(ticket); }

  template <typename Outcome>
  void Answer(const std::variant<Outcome, Error>& outcome) {
    grpc::ByteBuffer answer;
    const grpc::Status status = StatusOf([&] {
      if (const Error* error = std::get_if<Error>(&outcome)) throw *error;
      answer = SerializeMessage(ToProto(std::get<Outcome>(outcome)));
    });
    End(status, std::move(answer));
  }

  // The first end counts.
  void End(const grpc::Status& status, grpc::ByteBuffer answer) {
    {
      const std::lock_guard lock(mutex_);
      if (ended_) return;
      ended_ = true;
      *out_ = std::move(answer);
    }
    timer_.Done(status);
    Finish(status);
  }

  // At once: a stop does not wait for the engine.
  void OnCancel() override {
    End(grpc::Status(grpc::StatusCode::CANCELLED,
                     "the client left or its deadline passed; the change goes on"),
        {});
  }
  void OnDone() override {
    ticket_.reset();
    self_.reset();
  }

 private:
  const CallTimer timer_;
  grpc::ByteBuffer* const out_;
  OpenCalls::Ticket ticket_;
  std::shared_ptr<ModelCall> self_;
  std::mutex mutex_;
  bool ended_ = false;  // guarded by mutex_
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
