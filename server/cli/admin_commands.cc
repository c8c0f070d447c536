// models, health; backends, explain, force, hold, leases, release, drain, log_level on the admin
// port.
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <cstdio>
#include <memory>

#include "denoised/v1/admin.grpc.pb.h"
#include "denoised/v1/model.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "runtime/request_limits.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/output.h"
#include "server/cli/text.h"

namespace denoised::cli {
namespace {

using Stub = v1::AdminService::Stub;
using google::protobuf::util::TimeUtil;

std::unique_ptr<Stub> MakeStub(const CommonOptions& options) {
  return v1::AdminService::NewStub(Connect(options.admin));
}

int Models(const Invocation& call) {
  CommonOptions options;
  if (!ParseCommand(call, {}, &options, 0, 0)) return kExitOk;
  const auto stub = v1::ModelService::NewStub(Connect(options.server));
  const auto reply =
      Call(stub, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), options.server);
  if (options.json) {
    PrintJson(reply);
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "PIPELINE", "PARAMETERS", "DTYPE", "DEVICE", "DEFAULT SIZE"}};
  for (const v1::Model& model : reply.models()) {
    const v1::GenerationParameters& sizes = model.defaults();
    rows.push_back({model.name() + (model.is_default() ? " (default)" : ""), model.pipeline(),
                    std::to_string(model.transformer_parameters()), model.dtype(), model.device(),
                    std::to_string(sizes.width()) + "x" + std::to_string(sizes.height()) + ", " +
                        std::to_string(sizes.num_frames()) + " frames"});
  }
  PrintTable(rows);
  for (const v1::FailedModel& model : reply.failed()) {
    std::printf("not loaded: %s: %s\n", model.name().c_str(), model.message().c_str());
  }
  return kExitOk;
}

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

int Backends(const Invocation& call) {
  CommonOptions options;
  if (!ParseCommand(call, {}, &options, 0, 0)) return kExitOk;
  const auto reply =
      Call(MakeStub(options), &Stub::ListBackends, v1::ListBackendsRequest(), options.admin);
  if (options.json) {
    PrintJson(reply);
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {{"NAME", "USABLE", "AUTOMATIC", "NOTE"}};
  for (const v1::Backend& backend : reply.backends()) {
    rows.push_back({backend.name(), backend.usable() ? "yes" : "no",
                    backend.automatic() ? "yes" : "no",
                    backend.usable() ? backend.summary() : backend.why_not()});
  }
  PrintTable(rows);
  return kExitOk;
}

void PrintRole(const v1::RoleExplanation& role) {
  constexpr size_t kReasonColumns = 300;
  const v1::AttentionSpec& spec = role.spec();
  PrintLine(role.role() + ": " + (role.would_run().empty() ? "nothing can run" : role.would_run()));
  PrintLine("  because      " + (role.error().empty() ? WhoChose(role.source(), role.lease_id())
                                                      : OneLine(role.error(), 500)));
  if (role.has_parameters()) {
    PrintLine("  with         " + OneLine(Json(role.parameters()), kReasonColumns));
  }
  PrintLine("  layer        " + std::to_string(spec.num_heads()) + " heads of " +
            std::to_string(spec.head_size()) + ", " + spec.dtype() + ", " +
            std::to_string(spec.q_len()) + " queries over " + std::to_string(spec.kv_len()) +
            " keys");
  std::vector<std::vector<std::string>> rows;
  for (const v1::BackendCandidate& candidate : role.candidates()) {
    if (candidate.backend() == role.would_run()) continue;
    const std::string why = !candidate.listed()            ? "the layer does not list it"
                            : !candidate.why_not().empty() ? candidate.why_not()
                                                           : "could serve; another came first";
    rows.push_back({"  not " + candidate.backend(), OneLine(why, kReasonColumns)});
  }
  PrintTable(rows);
}

int Explain(const Invocation& call) {
  CommonOptions options;
  v1::ExplainSelectionRequest request;
  const auto whole = [](const std::string& name, const std::string& field,
                        std::function<void(int64_t)> set) {
    const auto& limit = WholeLimit(field);
    return Flag{name, "N", "", "As in generate. Between " + RangeText(limit) + ".",
                SetInt(name, limit.min, limit.max, std::move(set))};
  };
  std::vector<Flag> flags = {
      {"model", "NAME", "", "Model; unset: the server's default.",
       SetString(request.mutable_model())},
      whole("height", "height", [&](int64_t n) { request.set_height(n); }),
      whole("width", "width", [&](int64_t n) { request.set_width(n); }),
      whole("frames", "num_frames", [&](int64_t n) { request.set_num_frames(n); })};
  for (Flag& flag : AttentionFlags(request.mutable_attention())) flags.push_back(std::move(flag));
  if (!ParseCommand(call, std::move(flags), &options, 0, 0)) return kExitOk;
  const auto reply = Call(MakeStub(options), &Stub::ExplainSelection, request, options.admin);
  if (options.json) {
    PrintJson(reply);
    return kExitOk;
  }
  for (const v1::RoleExplanation& role : reply.roles()) PrintRole(role);
  return kExitOk;
}

// A JSON object as a message.
void SetParameters(const std::string& text, google::protobuf::Struct* parameters) {
  const auto status = google::protobuf::util::JsonStringToMessage(text, parameters);
  if (!status.ok()) {
    throw UsageError("--parameters is a JSON object, got '" + OneLine(text, 100) + "'");
  }
}

std::string Remaining(const v1::Lease& lease) {
  if (!lease.has_remaining()) return "no end";
  const int64_t ms = TimeUtil::DurationToMilliseconds(lease.remaining());
  return std::to_string((ms + 999) / 1000) + " s left";
}

void PrintLease(const v1::Lease& lease, bool json) {
  if (json) return PrintJson(lease);
  const std::string with =
      lease.has_parameters() ? " with " + OneLine(Json(lease.parameters()), 300) : "";
  PrintLine(lease.id() + " forces " + lease.backend() + with + ", " + Remaining(lease));
  FlushOutput();
}

// Flags of force and hold.
template <typename Request>
std::vector<Flag> ForceFlags(Request* request, std::string* scope) {
  return {
      {"ttl", "TIME", "", "Ends by itself after this long (90s, 10m, 1h); unset: no end.",
       [request](const std::string& text) {
         const auto ttl = ParsePositiveDuration("ttl", text);
         *request->mutable_ttl() = TimeUtil::MillisecondsToDuration(ttl.count());
       }},
      {"parameters", "JSON", "",
       "The backend's parameters, a JSON object (--parameters='{\"sparsity\": 0.9}'); unset: those "
       "that a job or its model has for it.",
       [request](const std::string& text) { SetParameters(text, request->mutable_parameters()); }},
      {"reason", "TEXT", "", "For the log and for `leases`.",
       [request](const std::string& text) { request->set_reason(text); }},
      {"scope", "SCOPE", "server", "What is forced. This version knows `server` only.",
       SetChoice("scope", {"server"}, scope)},
  };
}

int Force(const Invocation& call) {
  CommonOptions options;
  v1::ForceBackendRequest request;
  std::string scope;
  const auto rest = ParseCommand(call, ForceFlags(&request, &scope), &options, 1, 1);
  if (!rest) return kExitOk;
  request.set_backend(rest->front());
  PrintLease(Call(MakeStub(options), &Stub::ForceBackend, request, options.admin), options.json);
  return kExitOk;
}

int Hold(const Invocation& call) {
  CommonOptions options;
  v1::HoldBackendRequest request;
  std::string scope;
  const auto rest = ParseCommand(call, ForceFlags(&request, &scope), &options, 1, 1);
  if (!rest) return kExitOk;
  request.set_backend(rest->front());
  RequireUtf8(request);
  const auto stub = MakeStub(options);
  grpc::ClientContext context;
  const auto reader = stub->HoldBackend(&context, request);
  for (v1::Lease lease; reader->Read(&lease);) PrintLease(lease, options.json);
  CheckStatus(reader->Finish(), options.admin);
  return kExitOk;
}

int Leases(const Invocation& call) {
  CommonOptions options;
  if (!ParseCommand(call, {}, &options, 0, 0)) return kExitOk;
  const auto reply =
      Call(MakeStub(options), &Stub::ListLeases, v1::ListLeasesRequest(), options.admin);
  if (options.json) {
    PrintJson(reply);
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {
      {"ID", "BACKEND", "PARAMETERS", "SCOPE", "END", "HOLDER", "REASON"}};
  for (const v1::Lease& lease : reply.leases()) {
    const std::string parameters =
        lease.has_parameters() ? OneLine(Json(lease.parameters()), 60) : "";
    rows.push_back({lease.id(), lease.backend(), parameters, lease.scope(), Remaining(lease),
                    lease.holder(), OneLine(lease.reason(), 60)});
  }
  PrintTable(rows);
  return kExitOk;
}

int Release(const Invocation& call) {
  CommonOptions options;
  v1::ReleaseForceRequest request;
  bool all = false;
  const std::vector<Flag> flags = {
      {"all", "", "", "Release every force instead of one.", SetBool("all", &all)}};
  const auto rest = ParseCommand(call, flags, &options, 0, 1);
  if (!rest) return kExitOk;
  if (rest->empty() != all)
    throw UsageError("either an ID (denoisectl leases lists them) or --all");
  request.set_all(all);
  if (!all) request.set_lease_id(rest->front());
  const auto reply = Call(MakeStub(options), &Stub::ReleaseForce, request, options.admin);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine("released " + std::to_string(reply.released()));
  }
  return kExitOk;
}

int Drain(const Invocation& call) {
  CommonOptions options;
  if (!ParseCommand(call, {}, &options, 0, 0)) return kExitOk;
  const auto reply = Call(MakeStub(options), &Stub::Drain, v1::DrainRequest(), options.admin);
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
  const auto reply = Call(MakeStub(options), &Stub::SetLogLevel, request, options.admin);
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
      {"models", "", "Lists the server's models.", Uses::kServer, Models,
       "  denoisectl models --json\n"},
      {"health", "", "Asks whether the server serves; exit 1 where it does not.", Uses::kServer,
       Health, "  denoisectl health --server=127.0.0.1:50051\n"},
      {"backends", "", "Lists the attention backends and why some are not usable.", Uses::kAdmin,
       Backends, "  denoisectl backends --admin=127.0.0.1:50052\n"},
      {"explain", "", "Says which backend would run for each role, and why not the others.",
       Uses::kAdmin, Explain,
       "  denoisectl explain --backend=VIDEO_SPARSE_ATTN --param=sparsity=0.9 --frames=81\n"},
      {"force", "NAME", "Forces a backend for all jobs, running ones included.", Uses::kAdmin,
       Force, "  denoisectl force TORCH_SDPA --ttl=10m --reason=\"comparing\"\n"},
      {"hold", "NAME", "Forces a backend for as long as this command runs (end it with Ctrl-C).",
       Uses::kAdmin, Hold, "  denoisectl hold REFERENCE\n"},
      {"leases", "", "Lists the live forces, newest first.", Uses::kAdmin, Leases,
       "  denoisectl leases\n"},
      {"release", "ID | --all", "Ends a force early.", Uses::kAdmin, Release,
       "  denoisectl release --all\n"},
      {"drain", "", "Makes the server refuse new work; running work goes on.", Uses::kAdmin, Drain,
       "  denoisectl drain\n"},
      {"log_level", "LEVEL", "Sets what the server logs: debug, info, warning or error.",
       Uses::kAdmin, LogLevel, "  denoisectl log_level debug\n"},
  };
}

}  // namespace denoised::cli
