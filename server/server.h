// The composition root: builds the parts in order, owns them, stops them in reverse.
//
// HTTP comes first (so that /healthz answers while models load), then the engine, then public and
// admin gRPC, each with its own listener.
#ifndef DENOISED_SERVER_SERVER_H_
#define DENOISED_SERVER_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "runtime/engine.h"
#include "runtime/log.h"
#include "server/admin_service.h"
#include "server/config.h"
#include "server/denoise_service.h"
#include "server/dispatcher.h"
#include "server/generation_service.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/model_service.h"

namespace denoised {

class Server {
 public:
  using EngineFactory =
      std::function<std::unique_ptr<Engine>(const EngineOptions&, Observer*, Logger*)>;

  // Starts everything; returns when ready. Throws Error naming the address or model file at fault.
  // `logger` is borrowed. Tests hand in a fake engine; main passes Engine::Create.
  Server(const Config& config, Logger* logger, const EngineFactory& make_engine);
  // Stops at once: running work is cancelled.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // "READY grpc=127.0.0.1:50051 admin=... http=..."
  std::string ReadyLine() const;
  std::string address() const { return WithPort(config_.listen, port_); }
  std::string admin_address() const { return WithPort(config_.admin_listen, admin_port_); }
  std::string http_address() const { return WithPort(config_.http_listen, http_->port()); }

  // Refuses new work and turns health and readiness off. Idempotent; any thread.
  void Drain();
  // Drains, lets work go on for the configured grace, then cancels the rest. True where nothing had
  // to be cancelled.
  bool DrainAndWait();

 private:
  static std::string WithPort(const ListenAddress& address, int port);
  std::string NotReady() const;
  std::string ReadyNote() const;
  void StartGrpc();
  std::unique_ptr<grpc::Server> Listen(const std::string& flag, const ListenAddress& address,
                                       const std::vector<grpc::Service*>& services,
                                       int64_t max_message_bytes, int* port);
  Metrics::Gauges ReadGauges();

  const Config config_;
  Logger* const logger_;
  Metrics metrics_;
  std::atomic<bool> ready_{false};
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::unique_ptr<GenerationService> generation_;
  std::unique_ptr<DenoiseService> denoise_;
  std::unique_ptr<ModelService> models_;
  std::unique_ptr<AdminService> admin_;
  std::unique_ptr<grpc::Server> public_server_, admin_server_;
  int port_ = 0, admin_port_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_SERVER_H_
