#include "server/cli/prompt.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "runtime/request_limits.h"
#include "server/cli/command.h"

namespace denoised::cli {
namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

// All of the stream, or one byte more than a prompt may have with its mark and its line end.
std::string ReadAll(std::FILE* stream, const std::string& name) {
  const auto most = static_cast<size_t>(WholeLimit("prompt").max) + kByteOrderMark.size() + 3;
  std::string text(most, '\0');
  errno = 0;
  text.resize(std::fread(text.data(), 1, text.size(), stream));
  if (std::ferror(stream) != 0) {
    throw CommandError("cannot read the prompt from " + name + ": " + std::strerror(errno));
  }
  return text;
}

std::string ReadSource(const std::string& path) {
  if (path == "-") return ReadAll(stdin, "standard input");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             std::fclose);
  if (!file) {
    throw CommandError("cannot read the prompt from " + path + ": " + std::strerror(errno));
  }
  return ReadAll(file.get(), path);
}

std::string Stripped(std::string text) {
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

std::string ReadFrom(const std::string& path) {
  const std::string name = path == "-" ? "standard input" : path;
  std::string text = Stripped(ReadSource(path));
  const auto most = static_cast<size_t>(WholeLimit("prompt").max);
  if (text.empty()) throw CommandError("the prompt from " + name + " is empty");
  if (text.size() <= most) return text;
  throw CommandError("the prompt from " + name + " is longer than " + std::to_string(most) +
                     " bytes");
}

}  // namespace

Flag PromptFileFlag(std::string* path) {
  return {
      "prompt_file", "FILE", "",
      "Read the prompt from this file instead (one line end at its end is dropped; - is standard "
      "input, as is a PROMPT that is -).",
      [path](const std::string& text) {
        if (text.empty()) throw UsageError("--prompt_file is a file or -, got ''");
        *path = text;
      }};
}

void RequirePrompt(const std::vector<std::string>& arguments, const std::string& file) {
  if (!arguments.empty() && !file.empty()) {
    throw UsageError("either PROMPT or --prompt_file, not both");
  }
  if (arguments.empty() && file.empty()) {
    throw UsageError(
        "an argument is missing: PROMPT (- reads it from standard input), or "
        "--prompt_file=FILE");
  }
}

std::string ReadPrompt(const std::vector<std::string>& arguments, const std::string& file) {
  RequirePrompt(arguments, file);
  if (!file.empty()) return ReadFrom(file);
  return arguments.front() == "-" ? ReadFrom("-") : arguments.front();
}

}  // namespace denoised::cli
