// denoisectl: one command a call. Exit 0 ok, 1 failed, 2 wrong use.
#include <algorithm>
#include <cstdio>

#include "backends/error.h"
#include "runtime/threads.h"
#include "runtime/version.h"
#include "server/cli/command.h"
#include "server/convert.h"

namespace denoised::cli {
namespace {

std::vector<Command> AllCommands() {
  std::vector<Command> commands;
  for (auto part : {JobCommands(), LocalCommands(), AdminCommands()}) {
    commands.insert(commands.end(), part.begin(), part.end());
  }
  return commands;
}

void PrintHelp() {
  std::printf(
      "denoisectl: the client of denoised, an inference server for diffusion transformers.\n\n"
      "Usage: denoisectl COMMAND [arguments] [flags]\n\nCommands:\n");
  for (const Command& command : AllCommands()) {
    std::printf("  %-10s %s\n", command.name.c_str(), command.summary.c_str());
  }
  std::printf(
      "\ndenoisectl COMMAND --help shows a command's flags.\n"
      "Exit codes: 0 ok, 1 failed (message on stderr), 2 wrong use.\n");
}

int RunCommand(const std::vector<std::string>& arguments) {
  if (arguments.empty()) throw UsageError("a command is missing; see denoisectl --help");
  std::string name = arguments.front();
  if (name == "--help" || name == "-h" || name == "help") {
    PrintHelp();
    return kExitOk;
  }
  std::replace(name.begin(), name.end(), '-', '_');
  if (name == "__version" || name == "version") {
    std::printf("denoisectl %s\n", Version().c_str());
    return kExitOk;
  }
  for (const Command& command : AllCommands()) {
    if (command.name == name) {
      return command.run(command, {arguments.begin() + 1, arguments.end()});
    }
  }
  throw UsageError("unknown command '" + arguments.front() + "'; see denoisectl --help");
}

int Fail(int code, const std::string& message) {
  std::fprintf(stderr, "denoisectl: %s\n", message.c_str());
  return code;
}

int Main(const std::vector<std::string>& arguments) {
  try {
    return RunCommand(arguments);
  } catch (const UsageError& error) {
    return Fail(kExitUsage, error.what());
  } catch (const Error& error) {
    const auto code = static_cast<grpc::StatusCode>(error.code());
    return Fail(kExitFailed, std::string(StatusCodeName(code)) + ": " + error.what());
  } catch (const std::exception& error) {
    return Fail(kExitFailed, error.what());
  }
}

}  // namespace
}  // namespace denoised::cli

int main(int argc, char** argv) {
  denoised::KeepFreedMemory();
  return denoised::cli::Main({argv + 1, argv + argc});
}
