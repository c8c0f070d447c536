// What every call shares: parsing its request ourselves, timing it, and turning failures into
// statuses.
//
// Services use the raw callback methods: gRPC 1.51 answers a malformed message with a bare
// UNIMPLEMENTED or INTERNAL, while a client that sends one should read INVALID_ARGUMENT and what
// was wrong.
#ifndef DENOISED_SERVER_CALL_H_
#define DENOISED_SERVER_CALL_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string_view>
#include <utility>

#include "server/metrics.h"
#include "server/work_pool.h"

namespace denoised {

// Reads `bytes` into `message`. Throws INVALID_ARGUMENT where they are not such a message
// (malformed fields, text that is not UTF-8) or a field is over its budget (see wire_budget.h).
void ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);
grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

// Runs `body`; a thrown Error becomes its status, any other exception INTERNAL.
grpc::Status StatusOf(const std::function<void()>& body);

// Counts one call in rpc_seconds, and where its status says when to retry, says so in the trailer
// that gRPC's clients obey by themselves (grpc-retry-pushback-ms). Made when the call begins; Done
// exactly once, before the call is finished.
class CallTimer {
 public:
  CallTimer(grpc::CallbackServerContext* context, Metrics* metrics, std::string_view method)
      : context_(context),
        metrics_(metrics),
        method_(method),
        start_(std::chrono::steady_clock::now()) {}
  void Done(const grpc::Status& status) const;
  // Before Done: as if the client had left.
  void Cancel() const { context_->TryCancel(); }

 private:
  grpc::CallbackServerContext* const context_;
  Metrics* const metrics_;
  const std::string_view method_;  // a literal
  const std::chrono::steady_clock::time_point start_;
};

// A unary call that is answered on the spot. `handler(const Request&) -> Response` may throw Error.
template <typename Request, typename Handler>
grpc::ServerUnaryReactor* AnswerUnary(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out,
                                      Metrics* metrics, std::string_view method,
                                      const Handler& handler) {
  const CallTimer timer(context, metrics, method);
  const grpc::Status status = StatusOf([&] {
    Request request;
    ParseMessage(*in, &request);
    *out = SerializeMessage(handler(std::move(request)));
  });
  timer.Done(status);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

// What a call is told for which the work pool has no room.
Error TooBusy();

// A unary call that is answered from the work pool. Lives until gRPC is done with it.
class PooledCall : public grpc::ServerUnaryReactor {
 public:
  explicit PooledCall(const CallTimer& timer) : timer_(timer) {}

  // Runs `body`, which calls `end` once, on any thread, with what writes the answer and may throw
  // Error; or throws, and never calls it. `bytes` is the size of its message.
  using End = std::function<void(const std::function<void()>& write)>;
  void Run(WorkPool* pool, size_t bytes, std::function<void(End end)> body);

  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  void Finished(const grpc::Status& status);

  const CallTimer timer_;
  WorkPool::Room room_;
  std::atomic<bool> cancelled_{false};
};

// As AnswerUnary, for a handler that may take long or call LibTorch, and returns before the answer
// is there: `handler(Request&&, reply)` sees to it that `reply(make)` is called once, on any
// thread, where `make() -> Response` may throw Error; or throws itself.
template <typename Request, typename Handler>
grpc::ServerUnaryReactor* AnswerLater(grpc::CallbackServerContext* context, WorkPool* pool,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out,
                                      Metrics* metrics, std::string_view method, Handler handler) {
  auto* call = new PooledCall(CallTimer(context, metrics, method));
  call->Run(pool, in->Length(),
            [bytes = *in, out, handler = std::move(handler)](PooledCall::End end) {
              Request request;
              ParseMessage(bytes, &request);
              handler(std::move(request), [out, end = std::move(end)](const auto& make) {
                end([&] { *out = SerializeMessage(make()); });
              });
            });
  return call;
}

// Likewise, for a handler that returns with the answer.
template <typename Request, typename Handler>
grpc::ServerUnaryReactor* AnswerFromPool(grpc::CallbackServerContext* context, WorkPool* pool,
                                         const grpc::ByteBuffer* in, grpc::ByteBuffer* out,
                                         Metrics* metrics, std::string_view method,
                                         Handler handler) {
  return AnswerLater<Request>(context, pool, in, out, metrics, method,
                              [handler = std::move(handler)](Request&& request, const auto& reply) {
                                reply([&] { return handler(std::move(request)); });
                              });
}

// A streaming call that fails before it begins.
class FailedStream : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FailedStream(const CallTimer& timer, const grpc::Status& status) {
    timer.Done(status);
    Finish(status);
  }
  void OnDone() override { delete this; }
};

// The stream that `make` begins; one that fails before it begins where that throws.
template <typename Make>
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(const CallTimer& timer, const Make& make) {
  grpc::ServerWriteReactor<grpc::ByteBuffer>* stream = nullptr;
  const grpc::Status status = StatusOf([&] { stream = make(); });
  return status.ok() ? stream : new FailedStream(timer, status);
}

}  // namespace denoised

#endif  // DENOISED_SERVER_CALL_H_
