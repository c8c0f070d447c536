// denoised: flags -> config -> ports -> models -> serve until a signal -> drain -> stop.
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu_isa.h"
#include "runtime/loaders/visible_text.h"
#include "runtime/threads.h"
#include "runtime/version.h"
#include "server/descriptors.h"
#include "server/repository_path.h"
#include "server/server.h"
#include "server/stop_signals.h"

namespace denoised {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
// What a failed start may take to come down, and a stop beyond its grace.
constexpr std::chrono::milliseconds kLastWait{1900};

// gRPC's own complaints become lines of our log. Its hook takes no context.
std::atomic<Logger*> grpc_logger{nullptr};

void LogForGrpc(gpr_log_func_args* args) {
  Logger* const logger = grpc_logger.load();
  if (logger != nullptr) logger->Warning("grpc", {{"text", args->message}});
}

// Libraries that would write to stderr in their own way. Protobuf complains about malformed
// requests, which the client is told already.
void QuietenLibraries() {
  gpr_set_log_function(LogForGrpc);
  google::protobuf::SetLogHandler(nullptr);
}

// A socket must never become what the log is written to.
void OpenStandardDescriptors() {
  while (true) {
    const int fd = open("/dev/null", O_RDWR);
    if (fd < 0) return;
    if (fd > STDERR_FILENO) {
      close(fd);
      return;
    }
  }
}

// One line, although names of files and values of flags are other people's text.
int Complain(int code, const std::exception& error) {
  std::fprintf(stderr, "denoised: %s\n", VisibleText(error.what()).c_str());
  return code;
}

// Says why the start failed, and sees to it that the process ends whatever is left of it.
int Fail(const std::exception& error, Logger* logger) {
  StopSignals::ExitAfter(kLastWait, kExitFailed);
  logger->Flush(std::chrono::milliseconds(200));
  return Complain(kExitFailed, error);
}

int Serve(Config config, StopSignals* signals) {
  // Never destroyed: gRPC may log to the very end.
  auto* const logger = new Logger(stderr, config.log_level);
  grpc_logger = logger;
  signals->LogTo(logger);
  config.engine.end_process = [logger](int code) {
    logger->Flush(std::chrono::milliseconds(200));
    _exit(code);
  };
  // From the first unit of work on a stop is noted, and in order.
  config.engine.before_work = [signals](std::function<void()> note_stop) {
    signals->BeginServing(std::move(note_stop));
  };
  grpc_init();  // for good: its own end may wait many seconds for a thread of its that polls
  Server server(config, logger, RaiseDescriptorLimit());
  try {
    server.Start(Engine::Create);
  } catch (const std::exception& error) {
    return Fail(error, logger);
  }
  std::printf("%s\n", server.ReadyLine().c_str());
  std::fflush(stdout);
  logger->Info("server.signal", {{"number", std::to_string(signals->Wait())}});
  StopSignals::ExitAfter(config.drain_grace + kLastWait, 0);
  server.DrainAndWait();
  server.Stop();
  logger->Flush(std::chrono::milliseconds(200));
  return 0;
}

int Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  if (std::fflush(stdout) == 0) return 0;
  throw std::runtime_error(std::string("cannot write to standard output: ") + std::strerror(errno));
}

int Main(const std::vector<std::string>& arguments, StopSignals* signals) {
  OpenStandardDescriptors();
  QuietenLibraries();
  try {
    Config config = ParseConfig(arguments);
    if (config.show_help) return Print(ConfigHelp());
    if (config.show_version) return Print("denoised " + Version() + "\n");
    if (!config.model_repository_given) config.engine.model_repository = FindModelRepository();
    PinFromFlag(config.cpu_isa);
    return Serve(std::move(config), signals);
  } catch (const UsageError& error) {
    return Complain(kExitUsage, error);
  } catch (const std::exception& error) {
    return Complain(kExitFailed, error);
  }
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  auto* const signals = new denoised::StopSignals;  // for as long as the process lives
  denoised::KeepFreedMemory();
  return denoised::Main({argv + 1, argv + argc}, signals);
}
