// Structured logging: one JSON object a line, on one stream. Torch-free.
#ifndef DENOISED_RUNTIME_LOG_H_
#define DENOISED_RUNTIME_LOG_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/log_writer.h"

namespace denoised {

enum class LogLevel : int { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3 };
std::optional<LogLevel> LogLevelFromName(std::string_view name);  // "debug" ... "error"
std::string_view LogLevelName(LogLevel level);

// Any thread; never blocks, whatever the stream does (see log_writer.h). Values are escaped
// (control, bidi and other line-forging characters too) and cut, so that a line is one valid JSON
// object of at most 8 KiB. Prompts are never logged.
class Logger {
 public:
  using Field = std::pair<std::string_view, std::string>;

  // `stream` is borrowed (stderr usually); its descriptor is written to, not its buffer.
  explicit Logger(std::FILE* stream = stderr, LogLevel level = LogLevel::kInfo);

  void set_level(LogLevel level) { level_.store(level, std::memory_order_relaxed); }
  LogLevel level() const { return level_.load(std::memory_order_relaxed); }

  // True once everything logged before is written; waits at most `timeout`.
  bool Flush(std::chrono::milliseconds timeout) { return writer_.Flush(timeout); }
  // Lines that found no room because the stream took nothing.
  uint64_t dropped() const { return writer_.dropped(); }

  void Log(LogLevel level, std::string_view event, std::initializer_list<Field> fields = {});
  void Info(std::string_view event, std::initializer_list<Field> fields = {}) {
    Log(LogLevel::kInfo, event, fields);
  }
  void Warning(std::string_view event, std::initializer_list<Field> fields = {}) {
    Log(LogLevel::kWarning, event, fields);
  }
  void Error(std::string_view event, std::initializer_list<Field> fields = {}) {
    Log(LogLevel::kError, event, fields);
  }

 private:
  std::atomic<LogLevel> level_;
  LogWriter writer_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOG_H_
