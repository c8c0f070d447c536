#include "runtime/log.h"

#include <array>
#include <chrono>
#include <ctime>

#include "runtime/loaders/visible_text.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

constexpr size_t kMaxLine = 8192;
constexpr size_t kMaxValue = 2048;
constexpr std::array<std::string_view, 4> kLevelNames = {"debug", "info", "warning", "error"};

void AppendEscapedUnit(std::string* out, uint32_t code) {
  std::array<char, 8> text;
  std::snprintf(text.data(), text.size(), "\\u%04x", code & 0xffff);
  *out += text.data();
}

void AppendJsonString(std::string* out, std::string_view text) {
  *out += '"';
  const size_t stop = out->size() + kMaxValue;
  while (!text.empty() && out->size() < stop) {
    const size_t length = Utf8Length(text);
    if (length == 0) {
      AppendEscapedUnit(out, 0xfffd);
      text.remove_prefix(1);
      continue;
    }
    const char32_t code = FirstCodePoint(text);
    if (code == '"' || code == '\\') {
      *out += '\\';
      *out += static_cast<char>(code);
    } else if (MustEscape(code)) {
      AppendEscapedUnit(out, code);
    } else {
      out->append(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
  *out += '"';
}

std::string Timestamp() {
  const auto now = std::chrono::system_clock::now();
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  const std::time_t seconds = ms / 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  std::array<char, 40> text;
  const size_t used = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text.data() + used, text.size() - used, ".%03dZ", static_cast<int>(ms % 1000));
  return text.data();
}

void AppendField(std::string* line, std::string_view key, std::string_view value) {
  *line += line->empty() ? '{' : ',';
  AppendJsonString(line, key);
  *line += ':';
  AppendJsonString(line, value);
}

std::string Line(LogLevel level, std::string_view event,
                 std::initializer_list<Logger::Field> fields) {
  std::string line;
  AppendField(&line, "time", Timestamp());
  AppendField(&line, "level", LogLevelName(level));
  AppendField(&line, "event", event);
  for (const auto& [key, value] : fields) {
    const size_t before = line.size();
    AppendField(&line, key, value);
    if (line.size() > kMaxLine - 2) {  // keep the line whole: drop the field that does not fit
      line.resize(before);
      break;
    }
  }
  return line + "}\n";
}

}  // namespace

std::optional<LogLevel> LogLevelFromName(std::string_view name) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (kLevelNames[i] == name) return static_cast<LogLevel>(i);
  }
  return std::nullopt;
}

std::string_view LogLevelName(LogLevel level) { return kLevelNames[static_cast<size_t>(level)]; }

Logger::Logger(std::FILE* stream, LogLevel level)
    : level_(level), writer_(fileno(stream), [](uint64_t lines) {
        return Line(LogLevel::kWarning, "log.dropped", {{"lines", std::to_string(lines)}});
      }) {}

void Logger::Log(LogLevel level, std::string_view event, std::initializer_list<Field> fields) {
  if (level >= this->level()) writer_.Write(Line(level, event, fields));
}

}  // namespace denoised
