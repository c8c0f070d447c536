// What the commands of denoisectl share: their table, their common flags, how arguments are read.
#ifndef DENOISED_SERVER_CLI_COMMAND_H_
#define DENOISED_SERVER_CLI_COMMAND_H_

#include <cstddef>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "denoised/v1/types.pb.h"
#include "server/cli/interrupts.h"
#include "server/flags.h"

namespace denoised::cli {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

// The command failed; main prints the message and exits with 1.
class CommandError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Which of the server's ports a command asks.
enum class Uses { kServer, kAdmin, kNeither };

struct Invocation;

// One command.
struct Command {
  std::string name;
  std::string arguments;  // as --help shows them: "PROMPT -o FILE"
  std::string summary;    // one line, also of the overview
  Uses uses;
  std::function<int(const Invocation&)> run;
  std::string examples;      // lines for --help
  std::string details = "";  // more of --help, after the summary
};

// A command as it was called. `arguments` is what came after its name.
struct Invocation {
  const Command& command;
  std::vector<std::string> arguments;
  Interrupts* interrupts;
};

// Each file's part of the table, in the order of --help.
std::vector<Command> JobCommands();      // generate submit jobs watch cancel fetch
std::vector<Command> LocalCommands();    // run attend
std::vector<Command> ModelCommands();    // models load unload
std::vector<Command> AdminCommands();    // health backends drain log_level
std::vector<Command> LeaseCommands();    // force hold renew leases release
std::vector<Command> ExplainCommands();  // explain
std::vector<Command> AuditCommands();    // audit
std::vector<Command> TuneCommands();     // tune
std::vector<Command> GuardCommands();    // shadow drill

// Flags that every command takes.
struct CommonOptions {
  std::string server = "127.0.0.1:50051";
  std::string admin = "127.0.0.1:50052";
  bool json = false;
  bool help = false;
};

// Reads the arguments of a command with its own `flags` and the common ones: --json, --help, and
// --server or --admin. Prints its help and returns empty where that was asked for. Throws
// UsageError for other than `min` to `max` arguments.
std::optional<std::vector<std::string>> ParseCommand(const Invocation& call,
                                                     std::vector<Flag> flags,
                                                     CommonOptions* options, size_t min,
                                                     size_t max);

// Backend, policy, parameters and schedule; `options` outlives the flags.
std::vector<Flag> AttentionFlags(v1::AttentionOptions* options);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_COMMAND_H_
