// Accepts connections for a gRPC server and hands them over, at most so many at a time.
//
// Debian 12's gRPC accepts by itself without a cap, and its listener stays deaf for ever once
// accept ran out of descriptors (CVE-2023-4785). This one refuses what is too many and outlives
// such a moment.
#ifndef DENOISED_SERVER_GRPC_ACCEPTOR_H_
#define DENOISED_SERVER_GRPC_ACCEPTOR_H_

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "server/listener.h"

namespace denoised {

class GrpcAcceptor {
 public:
  // `listener` is borrowed and outlives the acceptor.
  GrpcAcceptor(const Listener* listener, int64_t max_connections);
  ~GrpcAcceptor();
  GrpcAcceptor(const GrpcAcceptor&) = delete;
  GrpcAcceptor& operator=(const GrpcAcceptor&) = delete;

  // Makes the server that `builder` builds take its connections from here.
  void AddTo(grpc::ServerBuilder* builder);
  // Begins to accept; after BuildAndStart.
  void Start();
  // Accepts no more; before the server's Shutdown. Idempotent.
  void Stop();

  // Any thread, as the next. Whether new connections are closed at once, whatever room there is.
  void RefuseAll(bool all) { refuses_all_ = all; }

  // Connections that are open now, and those that were closed at once; of these, those that came
  // while all were.
  int64_t open() const;
  int64_t refused() const { return refused_; }
  int64_t turned_away() const { return turned_away_; }

 private:
  void Run();
  void Accept(int listening);
  void ForgetClosed() const;  // under mutex_

  const Listener* const listener_;
  const int64_t max_connections_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> grpc_;
  std::atomic<bool> refuses_all_{false};
  std::atomic<int64_t> refused_{0}, turned_away_{0};
  mutable std::mutex mutex_;
  // The connections by descriptor, with the socket's inode: gRPC closes them without a word, and a
  // descriptor that means another file by now is a connection that is gone. Guarded by mutex_.
  mutable std::map<int, ino_t> connections_;
  const int stop_;  // an eventfd: readable = stop
  std::thread thread_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_GRPC_ACCEPTOR_H_
