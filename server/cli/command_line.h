// What was typed, taken apart into a command and its arguments.
#ifndef DENOISED_SERVER_CLI_COMMAND_LINE_H_
#define DENOISED_SERVER_CLI_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "server/cli/command.h"

namespace denoised::cli {

struct CommandLine {
  enum class Asked { kCommand, kHelp, kVersion };
  Asked asked = Asked::kHelp;
  const Command* command = nullptr;  // of the given table
  std::vector<std::string> arguments;
};

// `arguments` without the program's name. Flags may stand before the command, where --server and
// --admin are for whichever command takes them; "help COMMAND" is "COMMAND --help". Throws
// UsageError for a missing or unknown command, with the nearest known one.
CommandLine ReadCommandLine(const std::vector<std::string>& arguments,
                            const std::vector<Command>& commands);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_COMMAND_LINE_H_
