// denoised: flags -> config -> server -> wait for a signal -> drain -> stop.
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "backends/cpu_isa.h"
#include "runtime/threads.h"
#include "runtime/version.h"
#include "server/server.h"

namespace denoised {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

// gRPC's own complaints become lines of our log. Its hook takes no context, hence a logger of its
// own.
void LogForGrpc(gpr_log_func_args* args) {
  Logger(stderr).Warning("grpc", {{"text", args->message}});
}

// Libraries that would write to stderr in their own way. Protobuf complains about malformed
// requests, which the client is told already.
void QuietenLibraries() {
  gpr_set_log_function(LogForGrpc);
  google::protobuf::SetLogHandler(nullptr);
}

// Signals are taken by sigwait, so that no handler runs anywhere. Before any thread starts.
sigset_t BlockSignals() {
  signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

// A second signal means now: nothing is lost by it that a longer wait would have kept.
void ExitOnNextSignal(sigset_t set) {
  std::thread([set] {
    int number = 0;
    sigwait(&set, &number);
    _exit(128 + number);
  }).detach();
}

int Serve(const Config& config, const sigset_t& signals) {
  Logger logger(stderr, config.log_level);
  Server server(config, &logger, Engine::Create);
  std::printf("%s\n", server.ReadyLine().c_str());
  std::fflush(stdout);
  int number = 0;
  sigwait(&signals, &number);
  logger.Info("server.signal", {{"number", std::to_string(number)}});
  ExitOnNextSignal(signals);
  server.DrainAndWait();
  return 0;
}

int Main(const std::vector<std::string>& arguments) {
  const sigset_t signals = BlockSignals();
  QuietenLibraries();
  try {
    const Config config = ParseConfig(arguments);
    if (config.show_help || config.show_version) {
      const std::string text = config.show_help ? ConfigHelp() : "denoised " + Version() + "\n";
      std::fputs(text.c_str(), stdout);
      return 0;
    }
    PinCpuIsa(config.cpu_isa);
    return Serve(config, signals);
  } catch (const UsageError& error) {
    std::fprintf(stderr, "denoised: %s\n", error.what());
    return kExitUsage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "denoised: %s\n", error.what());
    return kExitFailed;
  }
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  denoised::KeepFreedMemory();
  return denoised::Main({argv + 1, argv + argc});
}
