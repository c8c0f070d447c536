// A force that lives as long as a stream of gRPC.
#ifndef DENOISED_SERVER_HOLD_STREAM_H_
#define DENOISED_SERVER_HOLD_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "runtime/selection_policy.h"
#include "server/call.h"
#include "server/open_calls.h"

namespace denoised {

// Owns itself until gRPC is done with it. It is there before its force, whose end callback ends it,
// so that no release comes too early to be heard. What ends first, the force or the stream, ends
// the other.
class HoldStream : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                   public std::enable_shared_from_this<HoldStream> {
 public:
  HoldStream(const CallTimer& timer, SelectionPolicy* policy, OpenCalls::Ticket ticket)
      : timer_(timer), policy_(policy), ticket_(std::move(ticket)) {}

  // What ends the stream with its force; before there is one.
  SelectionPolicy::OnEnd Ender();

  // Stays alive until gRPC is done with it. First, and on the thread of the call.
  void Hold() { self_ = shared_from_this(); }

  // Then one of these, on any thread.
  void Start(const Lease& force);
  void Fail(const grpc::Status& status);

  void OnWriteDone(bool ok) override;
  void OnCancel() override { End(grpc::Status(grpc::StatusCode::CANCELLED, "the holder left")); }
  void OnDone() override { self_.reset(); }

 private:
  void End(const grpc::Status& status);
  void Leave(const grpc::Status& status);

  const CallTimer timer_;
  SelectionPolicy* const policy_;
  const OpenCalls::Ticket ticket_;
  Lease force_;
  grpc::ByteBuffer message_;
  std::shared_ptr<HoldStream> self_;
  std::mutex mutex_;
  bool writing_ = true;                  // guarded by mutex_; the first message, even before Start
  bool ended_ = false;                   // guarded by mutex_
  std::optional<grpc::Status> pending_;  // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_SERVER_HOLD_STREAM_H_
