// The server's configuration: flags, the --config file and the one environment variable, read once.
#ifndef DENOISED_SERVER_CONFIG_H_
#define DENOISED_SERVER_CONFIG_H_

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "backends/cpu_isa.h"
#include "runtime/engine.h"
#include "runtime/log.h"
#include "server/address.h"
#include "server/flags.h"

namespace denoised {

struct Config {
  EngineOptions engine;
  CpuIsa cpu_isa = CpuIsa::kAuto;       // main() pins it
  bool model_repository_given = false;  // else FindModelRepository says where it is
  bool state_dir_given = false;         // else ParseConfig takes DefaultStateDir
  ListenAddress listen, admin_listen, http_listen;
  int64_t max_message_bytes = int64_t{64} << 20;
  std::chrono::milliseconds drain_grace{30000};
  int64_t max_connections = 1024;  // of the public gRPC port
  int64_t max_http_connections = 256;
  int64_t max_streams_per_connection = 1024;  // of either gRPC port
  std::chrono::milliseconds http_timeout{10000};
  LogLevel log_level = LogLevel::kInfo;
  bool insecure_public = false;
  bool show_help = false;     // print Help() and exit 0
  bool show_version = false;  // print the version and exit 0
};

// `arguments` without the program's name. Throws UsageError with one clear line: unknown flag or
// file key, value out of range, public address without --insecure_public, folder that cannot be
// written.
Config ParseConfig(const std::vector<std::string>& arguments);

// $XDG_STATE_HOME/denoised, else ~/.local/state/denoised. Throws UsageError where neither that
// variable nor HOME is set.
std::string DefaultStateDir();

// What FASTVIDEO_ATTENTION_BACKEND asks for; empty where it is unset or blank. Throws UsageError
// for a name that is none.
std::optional<AttnBackend> EnvironmentBackend();

// What --help prints: every flag with its default.
std::string ConfigHelp();

}  // namespace denoised

#endif  // DENOISED_SERVER_CONFIG_H_
