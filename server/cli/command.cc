#include "server/cli/command.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include "server/address.h"
#include "server/cli/output.h"
#include "server/cli/schedule_flag.h"

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
  const std::string key = text.substr(0, equals);
  if (!parameters->mutable_fields()->insert({key, value}).second) {
    throw UsageError("--param names '" + key + "' twice");
  }
}

Flag AddressFlag(const std::string& name, const std::string& help, std::string* target) {
  return {name, "HOST:PORT", *target, help, [name, target](const std::string& text) {
            *target = ParseAddress(name, text, /*lowest_port=*/1).ToString();
          }};
}

// A flag of the other port: not shown, and refused with the one that is meant.
Flag WrongPortFlag(const Command& command, const std::string& name, const std::string& right) {
  return {name, "HOST:PORT", "", "", [=, command = command.name](const std::string&) {
            throw UsageError("--" + name + " is not for " + command + ", which " +
                             (right.empty() ? "asks no server" : "asks the port of --" + right));
          }};
}

std::vector<Flag> CommonFlags(const Command& command, CommonOptions* options) {
  const Flag server = AddressFlag("server", "The server's public address.", &options->server);
  const Flag admin = AddressFlag("admin", "The server's admin address.", &options->admin);
  std::vector<Flag> flags;
  switch (command.uses) {
    case Uses::kServer:
      flags = {server, WrongPortFlag(command, "admin", "server")};
      break;
    case Uses::kAdmin:
      flags = {admin, WrongPortFlag(command, "server", "admin")};
      break;
    case Uses::kNeither:
      flags = {WrongPortFlag(command, "server", ""), WrongPortFlag(command, "admin", "")};
      break;
  }
  flags.push_back({"json", "", "", "Print the reply messages as JSON, one a line.",
                   SetBool("json", &options->json)});
  flags.push_back({"help", "", "", "Show this text.", SetBool("help", &options->help), "h"});
  return flags;
}

std::string Usage(const Command& command) {
  return "denoisectl " + command.name + (command.arguments.empty() ? "" : " ") + command.arguments +
         " [flags]";
}

void PrintCommandHelp(const Command& command, const std::vector<Flag>& flags) {
  PrintText(command.summary + "\n" + command.details + "\nUsage: " + Usage(command) +
            "\n\nFlags:\n" + FlagsHelp(flags) + "\nExamples:\n" + command.examples);
}

std::string WrongCount(const Command& command, bool too_few) {
  const std::string usage = "; usage: " + Usage(command);
  if (too_few) return "an argument is missing" + usage;
  const bool prompt = command.arguments.find("PROMPT") != std::string::npos;
  return "too many arguments" +
         std::string(prompt ? " (a prompt of several words stands in quotes)" : "") + usage;
}

}  // namespace

std::optional<std::vector<std::string>> ParseCommand(const Invocation& call,
                                                     std::vector<Flag> flags,
                                                     CommonOptions* options, size_t min,
                                                     size_t max) {
  for (Flag& flag : CommonFlags(call.command, options)) flags.push_back(std::move(flag));
  std::vector<std::string> rest = ParseFlags(flags, call.arguments, max);
  if (options->help) {
    PrintCommandHelp(call.command, flags);
    return std::nullopt;
  }
  if (rest.size() < min || rest.size() > max) {
    throw UsageError(WrongCount(call.command, rest.size() < min));
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
       [options](const std::string& text) {
         bool strict = false;
         SetBool("strict", &strict)(text);
         options->set_policy(strict ? v1::STRICT : v1::PREFER);
       }},
      {"param", "KEY=VALUE", "",
       "A parameter of the backend (--param=window=3 --param=sparsity=0.9). May be repeated.",
       [options](const std::string& text) { SetParameter(text, options->mutable_parameters()); },
       "", /*repeatable=*/true},
      ScheduleFlag(options),
  };
}

}  // namespace denoised::cli
