#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/engine/memory_budget.h"
#include "runtime/engine/memory_ladder.h"
#include "runtime/version.h"
#include "server/drain.h"
#include "server/pages.h"

namespace denoised {
namespace {

constexpr int64_t kAdminMessageBytes = int64_t{1} << 20;
constexpr size_t kQuotaFloorBytes = size_t{256} << 20;
// How long calls may take to end by themselves once no job is left.
constexpr std::chrono::milliseconds kCallGrace{200};
// How long a probe may be told what is true no longer.
constexpr std::chrono::milliseconds kHealthPace{500};
// Checks of large messages: two at a time, so that a large one does not hold up every small one.
constexpr int kPoolThreads = 2;
constexpr size_t kPoolTasks = 256;

// Limits against clients that connect and do nothing, ping too much, or open streams without end.
void SetConnectionLimits(int64_t max_streams, grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(max_streams));
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 60000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
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

std::vector<std::string> AdminServiceNames() { return {v1::AdminService::service_full_name()}; }

ConnectionCaps WantedCaps(const Config& config) {
  ConnectionCaps caps;
  caps.listen = config.max_connections;
  caps.http = config.max_http_connections;
  return caps;
}

void ReportCaps(const ConnectionCaps& wanted, const ConnectionCaps& caps, Logger* logger) {
  if (caps.listen == wanted.listen && caps.http == wanted.http) return;
  logger->Warning("connections.lowered", {{"max_connections", std::to_string(caps.listen)},
                                          {"max_http_connections", std::to_string(caps.http)},
                                          {"why", "the process may not open more descriptors"}});
}

void EndHeldLeases(SelectionPolicy* policy) {
  for (const Lease& lease : policy->List()) {
    if (lease.held) policy->End(lease.id, LeaseEnd::kHolderLeft, "the server stops");
  }
}

// What messages on their way in may take: a quarter of the memory at most, room for two at least.
size_t WireBytes(const std::string& max_memory, size_t max_message_bytes) {
  const size_t wanted = kQuotaFloorBytes + 4 * max_message_bytes;
  const auto limit = MemoryBudget(max_memory).Now();
  if (!limit) return wanted;
  return std::clamp(static_cast<size_t>(limit->bytes) / 4, 2 * max_message_bytes, wanted);
}

size_t WireBytes(const Config& config) {
  return WireBytes(config.engine.max_memory, static_cast<size_t>(config.max_message_bytes));
}

}  // namespace

Server::Server(const Config& config, Logger* logger, int64_t descriptors)
    : config_(config),
      logger_(logger),
      public_listener_("listen", config.listen),
      admin_listener_("admin_listen", config.admin_listen),
      http_listener_("http_listen", config.http_listen),
      caps_(FitCaps(WantedCaps(config), descriptors)),
      metrics_(Version()),
      open_calls_(config.max_streams_per_connection),
      holds_(config.max_streams_per_connection),
      pool_(kPoolThreads, kPoolTasks, WireBytes(config)),
      answers_(1, kPoolTasks, WireBytes(config)),
      admin_pool_(1, kPoolTasks, 4 * static_cast<size_t>(kAdminMessageBytes)),
      generation_(PublicContext()),
      denoise_(PublicContext()),
      models_(PublicContext()),
      admin_(AdminContext(), [this] { Drain(); }),
      self_check_(public_listener_.LocalTarget()) {
  ReportCaps(WantedCaps(config), caps_, logger_);
}

Server::~Server() { Stop(); }

void Server::Start(const EngineFactory& make_engine) {
  StartHttp();
  StartGrpc();
  metrics_.SetGaugeSource([this] { return ReadGauges(); });
  health_ = std::make_unique<Ticker>(kHealthPace, [this] {
    RelieveMemory();
    ShowHealth();
  });
  engine_ = make_engine(config_.engine, &metrics_, logger_);
  gate_.Open(engine_.get());
  health_->Now();
}

// Says it where it has changed: who watches is told each time.
void Server::ShowHealth() {
  const Engine* const engine = gate_.engine();
  const Health now{NotReady().empty(), engine != nullptr && !engine->draining() && !engine->Hung()};
  if (now == std::exchange(shown_, now)) return;
  SetHealth(public_.server.get(), PublicServiceNames(), now.answers);
  grpc::HealthCheckServiceInterface* health = public_.server->GetHealthCheckService();
  health->SetServingStatus(v1::GenerationService::service_full_name(), now.takes_jobs);
  health->SetServingStatus("", now.takes_jobs);  // of the port as a whole
}

// As far as the engine says that memory is short. The HTTP and admin ports stay open to all: they
// are few, and tell what is wrong.
void Server::RelieveMemory() {
  const Engine* const engine = gate_.engine();
  if (engine == nullptr) return;
  const MemoryStep step = engine->Pressure().step;
  if (step >= MemoryStep::kShedWatchers) watchers_shed_ += watchers_.ShedOldest();
  public_.acceptor->RefuseAll(step >= MemoryStep::kRefuseConnections);
}

void Server::StartHttp() {
  HttpServer::Limits limits;
  limits.max_connections = caps_.http;
  limits.request_time = config_.http_timeout;
  http_ = std::make_unique<HttpServer>(
      &http_listener_, limits,
      MakePages({[this] { return metrics_.Page(); }, [this] { return NotReady(); },
                 [this] { return ReadyNote(); },
                 [this](auto answer) { self_check_.Ask(std::move(answer)); }}));
}

void Server::StartGrpc() {
  EnableHealthAndReflection();
  public_ = Serve("listen", public_listener_, caps_.listen, config_.max_message_bytes,
                  {&generation_, &denoise_, &models_});
  admin_port_ = Serve("admin_listen", admin_listener_, caps_.admin, kAdminMessageBytes, {&admin_});
  // The admin service can say what it thinks of a server that loads; the public ones cannot serve.
  SetHealth(public_.server.get(), PublicServiceNames(), false);
  SetHealth(admin_port_.server.get(), AdminServiceNames(), true);
  public_.acceptor->Start();
  admin_port_.acceptor->Start();
}

Server::Port Server::Serve(const std::string& name, const Listener& listener,
                           int64_t max_connections, int64_t max_message_bytes,
                           const std::vector<grpc::Service*>& services) {
  grpc::ServerBuilder builder;
  SetConnectionLimits(config_.max_streams_per_connection, &builder);
  grpc::ResourceQuota quota(name);
  quota.Resize(WireBytes(config_.engine.max_memory, static_cast<size_t>(max_message_bytes)));
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(static_cast<int>(max_message_bytes));
  for (grpc::Service* service : services) builder.RegisterService(service);
  Port port;
  port.acceptor = std::make_unique<GrpcAcceptor>(&listener, max_connections);
  port.acceptor->AddTo(&builder);
  port.server = builder.BuildAndStart();
  if (!port.server) throw Error(StatusCode::kUnavailable, "--" + name + ": gRPC did not start");
  return port;
}

CallContext Server::PublicContext() {
  return {&gate_,       &dispatcher_, &watches_, &pool_, &answers_,
          &open_calls_, &watchers_,   &metrics_, logger_};
}

CallContext Server::AdminContext() {
  return {&gate_,  &dispatcher_, &watches_, &admin_pool_, &answers_,
          &holds_, &watchers_,   &metrics_, logger_};
}

std::string Server::WithPort(const ListenAddress& address, const Listener& listener) {
  return ListenAddress{address.host, listener.port()}.ToString();
}

std::string Server::ReadyLine() const {
  return "READY grpc=" + address() + " admin=" + admin_address() + " http=" + http_address();
}

std::string Server::NotReady() const {
  Engine* const engine = gate_.engine();
  if (engine == nullptr) return "loading";
  if (engine->draining()) return "draining";
  if (const auto hung = engine->Hung()) return "HUNG: " + *hung;
  if (engine->ListModels().empty()) return "no model is loaded";
  if (const auto why = engine->jobs().WhyNotReady()) return *why;
  const MemoryPressure pressure = engine->Pressure();
  return pressure.step == MemoryStep::kNone ? "" : "MEMORY: " + ShortText(pressure);
}

std::string Server::ReadyNote() const {
  std::string note;
  const Engine* const engine = gate_.engine();
  const std::vector<ModelInfo> models = engine->ListModels();
  for (const FailedModel& failed : engine->ListFailedModels()) {
    const bool serves = std::ranges::count(models, failed.name, &ModelInfo::name) > 0;
    note += "\nnot loaded" + std::string(serves ? ", an earlier one serves: " : ": ") +
            failed.name + ": " + failed.reason + ": " + failed.message;
  }
  return note;
}

Metrics::Gauges Server::ReadGauges() {
  Metrics::Gauges gauges;
  gauges.log_lines_dropped = logger_->dropped();
  gauges.connections["http"] = {http_->open(), http_->refused()};
  for (const auto& [name, port] : {std::pair("public", &public_), {"admin", &admin_port_}}) {
    gauges.connections[name] = {port->acceptor->open(), port->acceptor->refused()};
  }
  Engine* const engine = gate_.engine();
  if (engine == nullptr) return gauges;
  gauges.queue_depth = engine->queue_depth();
  gauges.jobs_running = engine->running_jobs();
  gauges.sessions = engine->open_sessions();
  gauges.hung = engine->Hung().has_value();
  const MemoryPressure pressure = engine->Pressure();
  gauges.memory_pressure = pressure.fraction;
  gauges.memory_shed = {{"work", pressure.refused_works},
                        {"watchers", watchers_shed_},
                        {"connections", public_.acceptor->turned_away()}};
  for (const Lease& force : engine->policy().List()) {
    ++gauges.leases[{force.backend, KindsText(force.scope)}];
  }
  for (const BreakerInfo& open : engine->Breakers()) {
    gauges.breakers.emplace(open.model, open.backend);
  }
  return gauges;
}

void Server::Drain() {
  Engine* const engine = gate_.engine();
  if (engine == nullptr || engine->draining()) return;
  engine->Drain();
  health_->Now();
  logger_->Info("server.draining", {{"queued", std::to_string(engine->queue_depth())},
                                    {"running", std::to_string(engine->running_jobs())},
                                    {"open_calls", std::to_string(open_calls_.count())}});
}

bool Server::DrainAndWait() {
  Drain();
  if (engine_) engine_->BeginNoMore();
  const bool quiet = WaitQuiet(engine_.get(), open_calls_, config_.drain_grace);
  if (!quiet) EndWork(engine_.get(), open_calls_, logger_);
  logger_->Info("server.drained", {{"cancelled", quiet ? "false" : "true"}});
  return quiet;
}

void Server::Stop() {
  Drain();
  metrics_.SetGaugeSource({});
  if (engine_) {
    engine_->Stop();
    EndHeldLeases(&engine_->policy());  // with the streams that hold them; the others stay
  }
  const auto deadline = std::chrono::system_clock::now() + kCallGrace;
  for (Port* port : {&public_, &admin_port_}) {
    if (port->acceptor) port->acceptor->Stop();
  }
  public_listener_.Close();  // who comes now is refused, instead of waiting for an answer
  admin_listener_.Close();
  for (Port* port : {&public_, &admin_port_}) {
    // Ends every call, also one that waits for the engine: such a call answers a cancel by itself.
    if (port->server) port->server->Shutdown(deadline);
  }
  health_.reset();
  if (engine_) engine_->Shutdown();
  http_.reset();
}

}  // namespace denoised
