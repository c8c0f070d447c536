#include "server/cli/schedule_flag.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "runtime/loaders/attention_schedule.h"
#include "server/cli/text.h"
#include "server/convert_attention.h"
#include "server/convert_values.h"

namespace denoised::cli {
namespace {

// A list stands on the command line itself; anything else is a path.
bool IsJson(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string::npos && text[first] == '[';
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file) return text;
  throw UsageError("--schedule is a list of rules as JSON, or a file with one; cannot read '" +
                   OneLine(path, 100) + "': " + std::strerror(errno));
}

v1::AttentionRule RuleOf(const AttentionRule& rule) {
  v1::AttentionRule message;
  if (rule.where.steps) *message.mutable_steps() = ToProto(*rule.where.steps);
  if (rule.where.sigma) *message.mutable_sigma() = ToProto(*rule.where.sigma);
  if (rule.where.layers) *message.mutable_layers() = ToProto(*rule.where.layers);
  if (rule.where.role) message.set_role(std::string(AttentionRoleName(*rule.where.role)));
  message.set_backend(std::string(AttnBackendName(rule.backend)));
  if (!rule.parameters_json.empty()) {
    *message.mutable_parameters() = JsonToProto(rule.parameters_json);
  }
  message.set_policy(ToProto(rule.mode));
  return message;
}

}  // namespace

Flag ScheduleFlag(v1::AttentionOptions* options) {
  return {"schedule", "FILE|JSON", "",
          "Which backend where: a list of rules, the first that matches holds, and --backend where "
          "none does ('[{\"steps\": \"0-4\", \"layers\": \"0-3\", \"backend\": \"REFERENCE\"}]'; "
          "also \"sigma\": \"0.2-0.9\", \"role\": \"self\", \"parameters\": {}, \"strict\": true; "
          "only \"backend\" is needed), or a file with one.",
          [options](const std::string& text) { SetSchedule(text, options); }};
}

void SetSchedule(const std::string& text, v1::AttentionOptions* options) {
  const std::string json = IsJson(text) ? text : ReadFile(text);
  try {
    for (const AttentionRule& rule : ReadSchedule(nlohmann::json::parse(json), "--schedule")) {
      *options->add_schedule() = RuleOf(rule);
    }
  } catch (const nlohmann::json::exception& error) {
    throw UsageError("--schedule is not JSON: " + OneLine(error.what(), 200));
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

}  // namespace denoised::cli
