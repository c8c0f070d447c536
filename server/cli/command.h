// What the commands of denoisectl share: their table, their common flags, talking to a server.
#ifndef DENOISED_SERVER_CLI_COMMAND_H_
#define DENOISED_SERVER_CLI_COMMAND_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "denoised/v1/types.pb.h"
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

// Flags that every command takes.
struct CommonOptions {
  std::string server = "127.0.0.1:50051";
  std::string admin = "127.0.0.1:50052";
  bool json = false;
  bool help = false;
};

// One command. `run` gets the arguments after the command's name.
struct Command {
  std::string name;
  std::string arguments;  // as --help shows them: "PROMPT"
  std::string summary;
  std::function<int(const Command&, const std::vector<std::string>&)> run;
};

// Each file's part of the table, in the order of --help.
std::vector<Command> JobCommands();    // generate submit jobs watch cancel fetch
std::vector<Command> LocalCommands();  // run attend
std::vector<Command>
AdminCommands();  // models backends explain force hold leases release drain health

enum class Uses { kServer, kAdmin, kNeither };
// --server or --admin, --json and --help.
std::vector<Flag> CommonFlags(CommonOptions* options, Uses uses);

// Parses the arguments of a command. Prints its help and returns empty where that was asked for.
// Throws UsageError for other than `min` to `max` arguments.
std::optional<std::vector<std::string>> ParseCommand(const Command& command,
                                                     const std::vector<Flag>& flags,
                                                     const CommonOptions& options,
                                                     const std::vector<std::string>& arguments,
                                                     size_t min, size_t max);

// Backend, policy and parameters; `options` outlives the flags.
std::vector<Flag> AttentionFlags(v1::AttentionOptions* options);

std::shared_ptr<grpc::Channel> Connect(const std::string& address);

// Throws CommandError that names the code, the message and, where the server cannot be reached, the
// address.
void CheckStatus(const grpc::Status& status, const std::string& address);

// A blocking unary call: `stub->*method`, with half a minute for the reply.
template <typename Stub, typename Request, typename Response>
Response Call(const std::unique_ptr<Stub>& stub,
              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
              const Request& request, const std::string& address) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  Response response;
  CheckStatus(((*stub).*method)(&context, request, &response), address);
  return response;
}

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_COMMAND_H_
