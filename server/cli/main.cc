// denoisectl: one command a call. Exit 0 ok, 1 failed, 2 wrong use.
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "backends/error.h"
#include "runtime/loaders/visible_text.h"
#include "runtime/threads.h"
#include "runtime/version.h"
#include "server/cli/command.h"
#include "server/cli/command_line.h"
#include "server/cli/output.h"
#include "server/convert.h"

namespace denoised::cli {
namespace {

std::vector<Command> AllCommands() {
  std::vector<Command> commands;
  for (auto part :
       {JobCommands(), LocalCommands(), ModelCommands(), AdminCommands(), LeaseCommands(),
        ExplainCommands(), AuditCommands(), TuneCommands(), GuardCommands()}) {
    commands.insert(commands.end(), part.begin(), part.end());
  }
  return commands;
}

void PrintHelp(const std::vector<Command>& commands) {
  PrintText(
      "denoisectl: the client of denoised, an inference server for diffusion transformers.\n\n"
      "Usage: denoisectl COMMAND [arguments] [flags]\n\nCommands:\n");
  for (const Command& command : commands) {
    const std::string first_line = command.summary.substr(0, command.summary.find('\n'));
    PrintText("  " + command.name + std::string(11 - command.name.size(), ' ') + first_line + "\n");
  }
  PrintText(
      "  help       Shows a command's flags, as COMMAND --help does.\n"
      "  version    Shows the version, as --version does.\n\n"
      "Every command takes --json (the reply messages, one a line) and --help; those that ask a "
      "server\n"
      "take --server or --admin. These may stand before the command. '-' and '_' in names are the "
      "same.\n"
      "Arguments that begin with '-' go after --.\n\n"
      "Example:\n"
      "  denoised &\n"
      "  denoisectl generate \"a red circle moving left\" -o circle.mp4\n\n"
      "Exit codes: 0 ok, 1 failed (message on stderr), 2 wrong use.\n");
}

int RunCommand(const std::vector<std::string>& arguments, Interrupts* interrupts) {
  const std::vector<Command> commands = AllCommands();
  const CommandLine line = ReadCommandLine(arguments, commands);
  switch (line.asked) {
    case CommandLine::Asked::kHelp:
      PrintHelp(commands);
      return kExitOk;
    case CommandLine::Asked::kVersion:
      PrintText("denoisectl " + Version() + "\n");
      return kExitOk;
    case CommandLine::Asked::kCommand:
      return line.command->run({*line.command, line.arguments, interrupts});
  }
  return kExitUsage;
}

int Fail(int code, const std::string& message) {
  std::fflush(stdout);
  PrintLine("denoisectl: " + message, stderr);
  return code;
}

int Main(const std::vector<std::string>& arguments, Interrupts* interrupts) {
  try {
    const int code = RunCommand(arguments, interrupts);
    FlushOutput();
    return code;
  } catch (const ReaderLeft&) {
    signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
    return kExitFailed;
  } catch (const UsageError& error) {
    return Fail(kExitUsage, error.what());
  } catch (const Error& error) {
    const auto code = static_cast<grpc::StatusCode>(error.code());
    return Fail(kExitFailed, std::string(StatusCodeName(code)) + ": " + error.what());
  } catch (const std::exception& error) {
    return Fail(kExitFailed, error.what());
  }
}

// A file or socket must not get the number of a standard stream that the caller has closed: words
// for people would go into it. Reading and writing such a stream fails as if it were still closed.
void OccupyStandardStreams() {
  for (int fd = open("/dev/null", O_RDONLY); fd >= 0; fd = open("/dev/null", O_RDONLY)) {
    if (fd <= STDERR_FILENO) continue;
    close(fd);
    return;
  }
}

// Every failure of theirs comes back as a status, which we print once and escaped.
void QuietenLibraries() {
  gpr_set_log_function([](gpr_log_func_args*) {});
  google::protobuf::SetLogHandler(nullptr);
}

}  // namespace
}  // namespace denoised::cli

int main(int argc, char** argv) {
  denoised::cli::OccupyStandardStreams();
  signal(SIGPIPE, SIG_IGN);  // a reader that left is an error of the write
  denoised::cli::Interrupts interrupts;
  denoised::KeepFreedMemory();
  denoised::cli::QuietenLibraries();
  return denoised::cli::Main({argv + std::min(argc, 1), argv + argc}, &interrupts);
}
