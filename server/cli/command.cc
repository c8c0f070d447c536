#include "server/cli/command.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <cstdio>

#include "server/convert.h"

namespace denoised::cli {
namespace {

// KEY=VALUE; VALUE is JSON where it parses as such, else a string.
void SetParameter(const std::string& text, google::protobuf::Struct* parameters) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw UsageError("--param is KEY=VALUE, got '" + text + "'");
  }
  google::protobuf::Value value;
  const std::string json = text.substr(equals + 1);
  if (json.empty() || !google::protobuf::util::JsonStringToMessage(json, &value).ok()) {
    value.set_string_value(json);
  }
  (*parameters->mutable_fields())[text.substr(0, equals)] = value;
}

}  // namespace

std::vector<Flag> CommonFlags(CommonOptions* options, Uses uses) {
  std::vector<Flag> flags;
  if (uses == Uses::kServer) {
    flags.push_back({"server", "HOST:PORT", options->server, "The server's public address.",
                     SetString(&options->server)});
  }
  if (uses == Uses::kAdmin) {
    flags.push_back({"admin", "HOST:PORT", options->admin, "The server's admin address.",
                     SetString(&options->admin)});
  }
  flags.push_back({"json", "", "", "Print the reply messages as JSON, one a line.",
                   SetBool("json", &options->json)});
  flags.push_back({"help", "", "", "Show this text.", SetBool("help", &options->help), "h"});
  return flags;
}

std::optional<std::vector<std::string>> ParseCommand(const Command& command,
                                                     const std::vector<Flag>& flags,
                                                     const CommonOptions& options,
                                                     const std::vector<std::string>& arguments,
                                                     size_t min, size_t max) {
  const std::vector<std::string> rest = ParseFlags(flags, arguments);
  const std::string usage = "denoisectl " + command.name +
                            (command.arguments.empty() ? "" : " " + command.arguments) + " [flags]";
  if (options.help) {
    std::printf("%s\n\nUsage: %s\n\nFlags:\n%s", command.summary.c_str(), usage.c_str(),
                FlagsHelp(flags).c_str());
    return std::nullopt;
  }
  if (rest.size() < min || rest.size() > max) {
    throw UsageError((rest.size() < min ? "an argument is missing" : "too many arguments") +
                     std::string("; usage: ") + usage);
  }
  return rest;
}

std::vector<Flag> AttentionFlags(v1::AttentionOptions* options) {
  return {
      {"backend", "NAME", "",
       "Attention backend to ask for (denoisectl backends lists them); unset: automatic.",
       [options](const std::string& name) { options->set_backend(name); }},
      {"strict", "", "",
       "Fail where that backend cannot serve a layer, instead of falling to the next choice.",
       [options](const std::string&) { options->set_policy(v1::STRICT); }},
      {"param", "KEY=VALUE", "",
       "A parameter of the backend (--param=window=3 --param=sparsity=0.9). May be repeated.",
       [options](const std::string& text) { SetParameter(text, options->mutable_parameters()); }},
  };
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // A proxy for the web is not a way to a gRPC server on a private address.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

void CheckStatus(const grpc::Status& status, const std::string& address) {
  if (status.ok()) return;
  std::string text =
      std::string(StatusCodeName(status.error_code())) + ": " + status.error_message();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty()) {
    text += " (is a server listening on " + address + "?)";
  }
  throw CommandError(text);
}

}  // namespace denoised::cli
