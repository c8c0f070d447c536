// models; load, unload on the admin port.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <memory>

#include "denoised/v1/admin.grpc.pb.h"
#include "denoised/v1/model.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/output.h"

namespace denoised::cli {
namespace {

using Stub = v1::AdminService::Stub;

// Tens of gigabytes from a slow disk.
constexpr std::chrono::hours kLoadPatience(6);

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
    const bool serves = std::ranges::count(reply.models(), model.name(), &v1::Model::name) > 0;
    PrintLine("not loaded" + std::string(serves ? ", an earlier one serves: " : ": ") +
              model.name() + ": " + model.message());
  }
  return kExitOk;
}

std::string Seconds(double seconds) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.1f s", seconds);
  return text.data();
}

void PrintLoaded(const v1::LoadModelResponse& reply) {
  const v1::Model& model = reply.model();
  if (reply.unchanged()) {
    PrintLine(model.name() + ": unchanged, serves " + model.model_digest());
    return;
  }
  PrintLine(model.name() + ": serves " + model.model_digest() + ", loaded in " +
            Seconds(reply.seconds()));
  if (reply.previous_model_digest().empty()) return;
  PrintLine("  instead of " + reply.previous_model_digest() + ", which " +
            std::to_string(reply.on_previous()) + " jobs and sessions go on with");
}

int Load(const Invocation& call) {
  CommonOptions options;
  v1::LoadModelRequest request;
  const std::vector<Flag> flags = {
      {"reason", "TEXT", "", "For the audit.", SetString(request.mutable_reason())}};
  const auto rest = ParseCommand(call, flags, &options, 1, 1);
  if (!rest) return kExitOk;
  request.set_name(rest->front());
  const auto reply =
      Call(AdminStub(options.admin), &Stub::LoadModel, request, options.admin, kLoadPatience);
  options.json ? PrintJson(reply) : PrintLoaded(reply);
  return kExitOk;
}

int Unload(const Invocation& call) {
  CommonOptions options;
  v1::UnloadModelRequest request;
  bool force = false;
  const std::vector<Flag> flags = {
      {"force", "", "", "Ends its jobs and sessions; without it they stand in the way.",
       SetBool("force", &force)},
      {"reason", "TEXT", "", "For the audit.", SetString(request.mutable_reason())}};
  const auto rest = ParseCommand(call, flags, &options, 1, 1);
  if (!rest) return kExitOk;
  request.set_name(rest->front());
  request.set_force(force);
  const auto reply =
      Call(AdminStub(options.admin), &Stub::UnloadModel, request, options.admin, kLoadPatience);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine(request.name() + ": unloaded, " + std::to_string(reply.ended_jobs()) + " jobs and " +
              std::to_string(reply.ended_sessions()) + " sessions ended");
  }
  return kExitOk;
}

}  // namespace

std::vector<Command> ModelCommands() {
  return {
      {"models", "", "Lists the server's models.", Uses::kServer, Models,
       "  denoisectl models --json\n"},
      {"load", "NAME", "Reads a model's folder again and swaps the model while the server runs.",
       Uses::kAdmin, Load, "  denoisectl load shapes --reason=\"new weights\"\n",
       "What runs ends with the model that it began with; what waits and comes gets the new one.\n"
       "A folder that cannot be loaded changes nothing.\n"},
      {"unload", "NAME", "Takes a model away until it is loaded again or the server restarts.",
       Uses::kAdmin, Unload,
       "  denoisectl unload old_shapes\n"
       "  denoisectl unload old_shapes --force\n"},
  };
}

}  // namespace denoised::cli
