#include "server/config.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "denoised/v1/config.pb.h"
#include "runtime/caught.h"
#include "runtime/store/state_folder.h"
#include "server/config_flags.h"

namespace denoised {
namespace {

// Keeps the first complaint of the text format's parser.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (!text.empty()) return;
    text = "line " + std::to_string(line + 1) + ", column " + std::to_string(column + 1) + ": " +
           message;
  }
  std::string text;
};

v1::ServerConfig ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file.good() && text.str().empty()) {
    throw UsageError("--config: cannot read '" + path + "'");
  }
  FirstError errors;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  v1::ServerConfig message;
  if (!parser.ParseFromString(text.str(), &message)) {
    throw UsageError("--config: " + path + ": " + errors.text);
  }
  return message;
}

std::string FieldAsText(const v1::ServerConfig& message,
                        const google::protobuf::FieldDescriptor& field) {
  const auto* reflection = message.GetReflection();
  switch (field.cpp_type()) {
    case google::protobuf::FieldDescriptor::CPPTYPE_INT64:
      return std::to_string(reflection->GetInt64(message, &field));
    case google::protobuf::FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(message, &field) ? "true" : "false";
    default:
      return reflection->GetString(message, &field);
  }
}

// The file's fields go through the flags' own setters, so that both have the same ranges.
void ApplyFile(const std::string& path, Config* config) {
  const v1::ServerConfig message = ReadFile(path);
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  const std::vector<Flag> flags = FileFlags(config);
  for (const auto* field : fields) {
    for (const Flag& flag : flags) {
      if (flag.name != field->name()) continue;
      try {
        flag.set(FieldAsText(message, *field));
      } catch (const UsageError& error) {
        throw UsageError(path + ": " + error.what());
      }
    }
  }
}

void CheckPublic(const std::string& name, const ListenAddress& address, const Config& config) {
  if (address.is_loopback() || config.insecure_public) return;
  throw UsageError(
      "--" + name + "=" + address.ToString() +
      " is not a loopback address and this server has no TLS; put a proxy in front, or "
      "accept the risk with --insecure_public");
}

void CheckStateDir(const std::string& path) {
  if (path.empty()) return;
  const auto error = Caught([&] { MakeFolder(path); });
  if (error || access(path.c_str(), W_OK | X_OK) != 0) {
    throw UsageError("--state_dir: cannot write to folder '" + path + "'");
  }
}

void SetDefaults(Config* config) {
  config->listen = {"127.0.0.1", 50051};
  config->admin_listen = {"127.0.0.1", 50052};
  config->http_listen = {"127.0.0.1", 8080};
}

}  // namespace

Config ParseConfig(const std::vector<std::string>& arguments) {
  Config config;
  SetDefaults(&config);
  // The flags are read twice: first to learn the file's name, then again so that they win over it.
  std::string path;
  const std::vector<std::string> rest = ParseFlags(AllFlags(&config, &path), arguments);
  if (!rest.empty()) throw UsageError("unexpected argument '" + rest.front() + "'; see --help");
  if (config.show_help || config.show_version) return config;
  if (!path.empty()) {
    config = Config{};
    SetDefaults(&config);
    ApplyFile(path, &config);
    ParseFlags(AllFlags(&config, &path), arguments);
  }
  CheckPublic("listen", config.listen, config);
  CheckPublic("admin_listen", config.admin_listen, config);
  CheckPublic("http_listen", config.http_listen, config);
  if (config.state_dir_given) {
    CheckStateDir(config.engine.state_dir);
  } else {
    config.engine.state_dir = DefaultStateDir();  // made when the store opens
  }
  config.engine.environment_backend = EnvironmentBackend();
  return config;
}

std::string DefaultStateDir() {
  const char* const state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && state[0] == '/') return std::string(state) + "/denoised";
  const char* const home = std::getenv("HOME");
  if (home != nullptr && home[0] == '/') return std::string(home) + "/.local/state/denoised";
  throw UsageError(
      "--state_dir: neither XDG_STATE_HOME nor HOME says where; name a folder, or none");
}

std::optional<AttnBackend> EnvironmentBackend() {
  try {
    return GetEnvVariableAttnBackend();
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

std::string ConfigHelp() {
  Config config;
  std::string path;
  return "denoised: an inference server for diffusion transformers.\n\n"
         "Usage: denoised [--model_repository=DIR] [flags]\n\n"
         "Loads every model of the repository, prints one line\n"
         "  READY grpc=HOST:PORT admin=HOST:PORT http=HOST:PORT\n"
         "on stdout and serves until SIGTERM or SIGINT, which drain it.\n\nFlags:\n" +
         FlagsHelp(AllFlags(&config, &path)) +
         "\nEnvironment:\n  FASTVIDEO_ATTENTION_BACKEND\n"
         "      Attention backend to take where neither a force nor the request names one, spelt "
         "as in\n"
         "      a request. Empty is as unset; an unknown name ends the program.\n"
         "\nExit codes: 0 ended as asked, 1 failed (message on stderr), 2 wrong use.\n";
}

}  // namespace denoised
