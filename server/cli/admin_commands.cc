// health; backends, drain, log_level on the admin port.
#include <memory>

#include "denoised/v1/admin.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/output.h"
#include "server/cli/text.h"

namespace denoised::cli {
namespace {

using Stub = v1::AdminService::Stub;

int Health(const Invocation& call) {
  CommonOptions options;
  grpc::health::v1::HealthCheckRequest request;
  const std::vector<Flag> flags = {{"service", "NAME", "",
                                    "A full service name (denoised.v1.GenerationService); unset: "
                                    "the server as a whole.",
                                    SetString(request.mutable_service())}};
  if (!ParseCommand(call, flags, &options, 0, 0)) return kExitOk;
  const auto stub = grpc::health::v1::Health::NewStub(Connect(options.server));
  const auto reply = Call(stub, &grpc::health::v1::Health::Stub::Check, request, options.server);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine(grpc::health::v1::HealthCheckResponse::ServingStatus_Name(reply.status()));
  }
  const bool serving = reply.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  return serving ? kExitOk : kExitFailed;
}

// What is in the way of a backend now.
std::string NoteOn(const v1::Backend& backend) {
  if (!backend.usable()) return backend.why_not();
  std::string note;
  for (const v1::Breaker& breaker : backend.breakers()) {
    note += "circuit breaker " + breaker.state() + " (" + breaker.model() + ", " + breaker.shape() +
            "): " + OneLine(breaker.last_error(), 100) + "; ";
  }
  return note + backend.summary();
}

int Backends(const Invocation& call) {
  CommonOptions options;
  if (!ParseCommand(call, {}, &options, 0, 0)) return kExitOk;
  const auto reply =
      Call(AdminStub(options.admin), &Stub::ListBackends, v1::ListBackendsRequest(), options.admin);
  if (options.json) {
    PrintJson(reply);
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {{"NAME", "USABLE", "AUTOMATIC", "NOTE"}};
  for (const v1::Backend& backend : reply.backends()) {
    rows.push_back({backend.name(), backend.usable() ? "yes" : "no",
                    backend.automatic() ? "yes" : "no", NoteOn(backend)});
  }
  PrintTable(rows);
  return kExitOk;
}

int Drain(const Invocation& call) {
  CommonOptions options;
  if (!ParseCommand(call, {}, &options, 0, 0)) return kExitOk;
  const auto reply =
      Call(AdminStub(options.admin), &Stub::Drain, v1::DrainRequest(), options.admin);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine("draining: " + std::to_string(reply.queued()) + " queued, " +
              std::to_string(reply.running()) + " running");
  }
  return kExitOk;
}

int LogLevel(const Invocation& call) {
  CommonOptions options;
  v1::SetLogLevelRequest request;
  const auto rest = ParseCommand(call, {}, &options, 1, 1);
  if (!rest) return kExitOk;
  request.set_level(rest->front());
  const auto reply = Call(AdminStub(options.admin), &Stub::SetLogLevel, request, options.admin);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine("was " + reply.previous_level());
  }
  return kExitOk;
}

}  // namespace

std::vector<Command> AdminCommands() {
  return {
      {"health", "", "Asks whether the server serves; exit 1 where it does not.", Uses::kServer,
       Health, "  denoisectl health --server=127.0.0.1:50051\n"},
      {"backends", "", "Lists the attention backends and why some are not usable.", Uses::kAdmin,
       Backends, "  denoisectl backends --admin=127.0.0.1:50052\n"},
      {"drain", "", "Makes the server refuse new work; what it has goes on.", Uses::kAdmin, Drain,
       "  denoisectl drain\n"},
      {"log_level", "LEVEL", "Sets what the server logs: debug, info, warning or error.",
       Uses::kAdmin, LogLevel, "  denoisectl log_level debug\n"},
  };
}

}  // namespace denoised::cli
