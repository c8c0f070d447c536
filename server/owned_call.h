// A unary call that the engine answers later, on a thread of its own choice.
#ifndef DENOISED_SERVER_OWNED_CALL_H_
#define DENOISED_SERVER_OWNED_CALL_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <utility>
#include <variant>

#include "backends/error.h"
#include "server/call.h"
#include "server/convert.h"
#include "server/open_calls.h"

namespace denoised {

// Owns itself until gRPC is done with it; the answer may come later than that, to a call that the
// client has left. Any thread.
class OwnedCall : public grpc::ServerUnaryReactor, public std::enable_shared_from_this<OwnedCall> {
 public:
  // `out` is gRPC's, until the call ends.
  OwnedCall(const CallTimer& timer, grpc::ByteBuffer* out) : timer_(timer), out_(out) {}

  // Once, when it is made, and where it counts as open.
  void Hold() { self_ = shared_from_this(); }
  void Keep(OpenCalls::Ticket ticket) { ticket_ = std::move(ticket); }

  // The first end counts.
  void End(const grpc::Status& status, grpc::ByteBuffer answer);
  // With what the engine says.
  template <typename Result>
  void Answer(std::variant<Result, Error> outcome) {
    grpc::ByteBuffer answer;
    const grpc::Status status = StatusOf([&] {
      if (const Error* error = std::get_if<Error>(&outcome)) throw *error;
      answer = SerializeMessage(ToProto(std::get<Result>(std::move(outcome))));
    });
    End(status, std::move(answer));
  }

  void OnDone() override {
    ticket_.reset();  // the engine may hold the rest for longer
    self_.reset();
  }

 private:
  const CallTimer timer_;
  grpc::ByteBuffer* const out_;
  OpenCalls::Ticket ticket_;
  std::shared_ptr<OwnedCall> self_;
  std::mutex mutex_;
  bool ended_ = false;  // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_SERVER_OWNED_CALL_H_
