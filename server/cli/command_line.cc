#include "server/cli/command_line.h"

#include <algorithm>

namespace denoised::cli {
namespace {

std::string Normalised(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

const Command& FindCommand(const std::string& typed, const std::vector<Command>& commands) {
  std::vector<std::string> names = {"help", "version"};
  for (const Command& command : commands) {
    if (command.name == Normalised(typed)) return command;
    names.push_back(command.name);
  }
  const std::string nearest = Nearest(Normalised(typed), names);
  throw UsageError(
      "unknown command '" + typed + "'" +
      (nearest.empty() ? "; see denoisectl --help" : "; did you mean '" + nearest + "'?"));
}

// Flags that stand before the command, each as one argument.
struct Leading {
  std::vector<std::string> flags;
  size_t size = 0;  // arguments that they took
};

bool IsOneOf(const std::string& text, const std::vector<std::string>& names) {
  return std::find(names.begin(), names.end(), text) != names.end();
}

Leading ReadLeading(const std::vector<std::string>& arguments) {
  Leading leading;
  size_t& i = leading.size;
  for (; i < arguments.size() && arguments[i].size() > 1 && arguments[i][0] == '-'; ++i) {
    const std::string& argument = arguments[i];
    const bool alone = IsOneOf(argument, {"--help", "-h", "--version", "--json"});
    if (alone || argument.find('=') != std::string::npos) {
      leading.flags.push_back(argument);
    } else if (IsOneOf(argument, {"--server", "--admin"})) {
      if (i + 1 == arguments.size()) throw UsageError(argument + " needs a value: HOST:PORT");
      leading.flags.push_back(argument + "=" + arguments[++i]);
    } else {
      throw UsageError("unknown flag " + argument +
                       " before the command; a command's own flags come after it");
    }
  }
  return leading;
}

// An address before the command is for all commands; this one may ask the other port, or none.
bool IsForAnother(const std::string& flag, const Command& command) {
  return (flag.starts_with("--server=") && command.uses != Uses::kServer) ||
         (flag.starts_with("--admin=") && command.uses != Uses::kAdmin);
}

CommandLine HelpFor(const std::vector<std::string>& rest, const std::vector<Command>& commands) {
  if (rest.size() > 1) throw UsageError("too many arguments; usage: denoisectl help [COMMAND]");
  if (rest.empty() || rest[0] == "--help" || rest[0] == "-h" || rest[0] == "help") return {};
  return {CommandLine::Asked::kCommand, &FindCommand(rest[0], commands), {"--help"}};
}

}  // namespace

CommandLine ReadCommandLine(const std::vector<std::string>& arguments,
                            const std::vector<Command>& commands) {
  const Leading leading = ReadLeading(arguments);
  if (IsOneOf("--version", leading.flags)) return {CommandLine::Asked::kVersion, nullptr, {}};
  const bool help = IsOneOf("--help", leading.flags) || IsOneOf("-h", leading.flags);
  if (leading.size == arguments.size()) {
    if (help) return {};
    throw UsageError("a command is missing; see denoisectl --help");
  }
  const std::string& name = arguments[leading.size];
  const std::vector<std::string> rest(arguments.begin() + static_cast<int64_t>(leading.size) + 1,
                                      arguments.end());
  if (name == "help") return HelpFor(rest, commands);
  if (name == "version") return {CommandLine::Asked::kVersion, nullptr, {}};
  CommandLine line{CommandLine::Asked::kCommand, &FindCommand(name, commands), {}};
  for (const std::string& flag : leading.flags) {
    if (!IsForAnother(flag, *line.command)) line.arguments.push_back(flag);
  }
  line.arguments.insert(line.arguments.end(), rest.begin(), rest.end());
  return line;
}

}  // namespace denoised::cli
