// The composition root: builds the parts in order, owns them, stops them in reverse.
//
// All three ports are bound before anything else. Then HTTP and gRPC begin to answer (health says
// NOT_SERVING, calls are refused with reason LOADING), then the engine loads, then the gate opens.
// From then on health follows what the server can do: while a full disk takes no job, the port and
// its GenerationService are NOT_SERVING, and well again with room, as while no model is loaded;
// likewise while memory is short, when it also sends watchers away and closes new connections
// (runtime/memory_pressure.h); while a unit hangs, all are.
#ifndef DENOISED_SERVER_SERVER_H_
#define DENOISED_SERVER_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine.h"
#include "runtime/log.h"
#include "runtime/ticker.h"
#include "server/admin_service.h"
#include "server/call_context.h"
#include "server/config.h"
#include "server/denoise_service.h"
#include "server/descriptors.h"
#include "server/generation_service.h"
#include "server/grpc_acceptor.h"
#include "server/http_server.h"
#include "server/listener.h"
#include "server/metrics.h"
#include "server/model_service.h"
#include "server/self_check.h"

namespace denoised {

class Server {
 public:
  using EngineFactory =
      std::function<std::unique_ptr<Engine>(const EngineOptions&, Observer*, Logger*)>;

  // Binds the ports. Throws Error naming the flag, the address and the reason. `logger` is
  // borrowed; `descriptors` is what the process may open.
  Server(const Config& config, Logger* logger, int64_t descriptors);
  // As Stop.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Starts everything; returns when ready. Throws Error naming the model file at fault. Tests hand
  // in a fake engine; main passes Engine::Create. Once.
  void Start(const EngineFactory& make_engine);

  // "READY grpc=127.0.0.1:50051 admin=... http=..."
  std::string ReadyLine() const;
  std::string address() const { return WithPort(config_.listen, public_listener_); }
  std::string admin_address() const { return WithPort(config_.admin_listen, admin_listener_); }
  std::string http_address() const { return WithPort(config_.http_listen, http_listener_); }

  // Refuses new work and turns health and readiness off. Idempotent; any thread.
  void Drain();
  // Drains, lets work, streams and fetches go on for the configured grace, then cancels the rest.
  // True where nothing had to be cancelled.
  bool DrainAndWait();
  // Stops at once: running work is cancelled. Idempotent.
  void Stop();

 private:
  // A gRPC server with the acceptor that feeds it.
  struct Port {
    std::unique_ptr<GrpcAcceptor> acceptor;
    std::unique_ptr<grpc::Server> server;
  };

  static std::string WithPort(const ListenAddress& address, const Listener& listener);
  std::string NotReady() const;
  void RelieveMemory();
  void ShowHealth();
  std::string ReadyNote() const;
  void StartHttp();
  void StartGrpc();
  Port Serve(const std::string& name, const Listener& listener, int64_t max_connections,
             int64_t max_message_bytes, const std::vector<grpc::Service*>& services);
  CallContext PublicContext();
  CallContext AdminContext();
  Metrics::Gauges ReadGauges();  // once HTTP and gRPC are there

  const Config config_;
  Logger* const logger_;
  Listener public_listener_, admin_listener_, http_listener_;
  ConnectionCaps caps_;
  Metrics metrics_;
  EngineGate gate_;
  OpenCalls open_calls_,
      holds_;  // of the public and the admin port; a stop does not wait for holds
  Watchers watchers_;
  std::atomic<int64_t> watchers_shed_{0};
  std::unique_ptr<Engine> engine_;
  TaskThread dispatcher_;
  JobWatches watches_{&dispatcher_};
  WorkPool pool_, answers_,
      admin_pool_;  // apart, so that a crowd at the public port keeps no operator waiting
  GenerationService generation_;
  DenoiseService denoise_;
  ModelService models_;
  AdminService admin_;
  SelfCheck self_check_;
  std::unique_ptr<HttpServer> http_;
  Port public_, admin_port_;
  // What gRPC's health service was last told of the public port. The ticker's.
  struct Health {
    bool takes_jobs = false, answers = false;
    bool operator==(const Health&) const = default;
  };
  Health shown_;
  std::unique_ptr<Ticker> health_;  // last: it looks at the others
};

}  // namespace denoised

#endif  // DENOISED_SERVER_SERVER_H_
