// DenoiseService.Session: requests of one client to its sessions, and their answers.
#ifndef DENOISED_SERVER_SESSION_STREAM_H_
#define DENOISED_SERVER_SESSION_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "denoised/v1/denoise.pb.h"
#include "runtime/engine.h"
#include "server/call.h"
#include "server/open_calls.h"
#include "server/work_pool.h"

namespace denoised {

// From gRPC's threads to the work pool, to the engine, and back. A request is read when there is
// room for its answer, so that neither a client that asks faster than it reads nor one that does
// not read at all makes the server hold more than a few messages. Owns itself until gRPC is done
// with it.
class SessionStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                      public std::enable_shared_from_this<SessionStream> {
 public:
  // `pool` is borrowed and outlives the stream.
  SessionStream(const CallTimer& timer, WorkPool* pool) : timer_(timer), pool_(pool) {}

  // Keeps the stream alive until gRPC is done with it. First, then one of the other two, all on the
  // thread of the call. `engine` outlives the stream.
  void Hold() { self_ = shared_from_this(); }
  void Start(Engine* engine, OpenCalls::Ticket ticket);
  void Refuse(const grpc::Status& status);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // A request under way.
  struct Request {
    std::string session_id;  // as the client named it
    uint64_t tag = 0;
    v1::SessionRequest::VerbCase verb = v1::SessionRequest::VERB_NOT_SET;
    bool large = false;
  };
  struct Answer {
    grpc::ByteBuffer message;
    bool large = false;
  };

  // On the work pool, or on gRPC's thread where that is `too_busy`.
  void Handle(const grpc::ByteBuffer& bytes, bool too_busy);
  void Dispatch(const Request& request, v1::SessionRequest&& message);
  void Done(const Request& request, SessionReply reply);  // any thread
  bool Count(const Request& request, const SessionReply& reply);
  std::string IdOf(const Request& request) const;
  void EndWith(const grpc::Status& status);  // when everything is answered
  // Does what can be done next: a write, the end, a read. Any thread, no lock held.
  void Advance();
  bool MayRead() const;  // under mutex_, as the next one
  std::optional<grpc::Status> WhyFinish() const;

  const CallTimer timer_;
  WorkPool* const pool_;
  Engine* engine_ = nullptr;
  const std::shared_ptr<SessionOwner> owner_ = std::make_shared<SessionOwner>();
  OpenCalls::Ticket ticket_;
  std::shared_ptr<SessionStream> self_;
  grpc::ByteBuffer in_;  // being read

  mutable std::mutex mutex_;  // guards all below
  std::deque<Answer> out_;    // the first one is being written while writing_
  bool reading_ = false;      // a read is under way, or its message is on its way to the engine
  bool writing_ = false, half_closed_ = false, cancelled_ = false, finished_ = false;
  int under_way_ = 0;     // requests whose answers have not left
  bool large_ = false;    // one of them is
  int64_t sessions_ = 0;  // that are open
  std::string first_id_;
  std::optional<grpc::Status> end_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_SESSION_STREAM_H_
