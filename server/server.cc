#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <chrono>
#include <mutex>
#include <utility>

#include "runtime/version.h"

namespace denoised {
namespace {

constexpr int64_t kAdminMessageBytes = int64_t{1} << 20;
constexpr size_t kQuotaFloorBytes = size_t{256} << 20;
// How long calls may take to end by themselves once no job is left.
constexpr std::chrono::milliseconds kCallGrace{1000};

// Limits against clients that connect and do nothing, ping too much, or open streams without end.
void SetConnectionLimits(grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100);
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 60000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
  // Without this a second server on the same port would start and share its connections.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

// Both are switches of the whole process in gRPC 1.51 and must precede the first builder.
void EnableHealthAndReflection() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

void SetHealth(grpc::Server* server, const std::vector<std::string>& services, bool serving) {
  grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
  for (const std::string& name : services) health->SetServingStatus(name, serving);
  health->SetServingStatus(serving);
}

std::vector<std::string> PublicServiceNames() {
  return {v1::GenerationService::service_full_name(), v1::DenoiseService::service_full_name(),
          v1::ModelService::service_full_name()};
}

}  // namespace

Server::Server(const Config& config, Logger* logger, const EngineFactory& make_engine)
    : config_(config), logger_(logger), metrics_(Version()) {
  http_ = std::make_unique<HttpServer>(
      config_.http_listen,
      HttpPages{[this] { return metrics_.Text(); }, [this] { return NotReady(); },
                [this] { return ReadyNote(); }});
  engine_ = make_engine(config_.engine, &metrics_, logger_);
  dispatcher_ = std::make_unique<Dispatcher>();
  StartGrpc();
  metrics_.SetGaugeSource([this] { return ReadGauges(); });
  ready_ = true;
}

Server::~Server() {
  Drain();
  metrics_.SetGaugeSource({});
  if (engine_) engine_->policy().Clear();  // ends the streams that hold one
  const auto deadline = std::chrono::system_clock::now() + kCallGrace;
  // Calls end before the engine does: those that wait for it are cancelled, and it answers them.
  if (public_server_) public_server_->Shutdown(deadline);
  if (admin_server_) admin_server_->Shutdown(deadline);
  if (engine_) engine_->Shutdown();
  http_.reset();
}

std::string Server::WithPort(const ListenAddress& address, int port) {
  return ListenAddress{address.host, port}.ToString();
}

std::string Server::ReadyLine() const {
  return "READY grpc=" + address() + " admin=" + admin_address() + " http=" + http_address();
}

std::string Server::NotReady() const {
  if (!ready_) return "loading";
  return engine_->draining() ? "draining" : "";
}

std::string Server::ReadyNote() const {
  std::string note;
  for (const FailedModel& model : engine_->ListFailedModels()) {
    note += "\nnot loaded: " + model.name + ": " + model.reason + ": " + model.message;
  }
  return note;
}

std::unique_ptr<grpc::Server> Server::Listen(const std::string& flag, const ListenAddress& address,
                                             const std::vector<grpc::Service*>& services,
                                             int64_t max_message_bytes, int* port) {
  grpc::ServerBuilder builder;
  SetConnectionLimits(&builder);
  grpc::ResourceQuota quota(flag);
  quota.Resize(kQuotaFloorBytes + 4 * static_cast<size_t>(max_message_bytes));
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(static_cast<int>(max_message_bytes));
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server || *port == 0) {
    throw Error(StatusCode::kUnavailable, "--" + flag + ": cannot listen on " + address.ToString(),
                flag);
  }
  return server;
}

void Server::StartGrpc() {
  EnableHealthAndReflection();
  generation_ = std::make_unique<GenerationService>(engine_.get(), dispatcher_.get(), &metrics_);
  denoise_ = std::make_unique<DenoiseService>(engine_.get(), &metrics_);
  models_ = std::make_unique<ModelService>(engine_.get(), &metrics_);
  admin_ = std::make_unique<AdminService>(engine_.get(), &metrics_, logger_, [this] { Drain(); });
  public_server_ =
      Listen("listen", config_.listen, {generation_.get(), denoise_.get(), models_.get()},
             config_.max_message_bytes, &port_);
  admin_server_ = Listen("admin_listen", config_.admin_listen, {admin_.get()}, kAdminMessageBytes,
                         &admin_port_);
  SetHealth(public_server_.get(), PublicServiceNames(), true);
  SetHealth(admin_server_.get(), {v1::AdminService::service_full_name()}, true);
}

Metrics::Gauges Server::ReadGauges() {
  Metrics::Gauges gauges;
  gauges.queue_depth = engine_->queue_depth();
  gauges.jobs_running = engine_->running_jobs();
  for (const Force& force : engine_->policy().List()) ++gauges.leases[force.backend];
  return gauges;
}

void Server::Drain() {
  if (!engine_ || engine_->draining()) return;
  engine_->Drain();
  if (public_server_) SetHealth(public_server_.get(), PublicServiceNames(), false);
  logger_->Info("server.draining");
}

bool Server::DrainAndWait() {
  Drain();
  const bool idle = engine_->WaitIdle(config_.drain_grace);
  logger_->Info("server.drained", {{"idle", idle ? "true" : "false"}});
  return idle;
}

}  // namespace denoised
