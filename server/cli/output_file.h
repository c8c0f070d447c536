// The file that a result goes to.
#ifndef DENOISED_SERVER_CLI_OUTPUT_FILE_H_
#define DENOISED_SERVER_CLI_OUTPUT_FILE_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "server/cli/command.h"
#include "server/cli/interrupts.h"

namespace denoised::cli {

// A result file, whole or not there: written under a name of its own in the target's folder and
// renamed at the end, so that a broken run leaves what was there before, and two runs into one path
// leave one of the two results. Links are followed: the file behind them is what is replaced. A new
// file gets the mode that the umask leaves, a replaced one keeps its own. Devices and pipes, and
// "-" (standard output), are written as they are. One thread.
class OutputFile {
 public:
  // Opens at once: a place that cannot be written is refused before any work is asked for. Throws
  // CommandError naming the path; UsageError for a terminal.
  OutputFile(const std::string& path, Interrupts* interrupts);
  ~OutputFile();  // removes what was not committed
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void Write(std::string_view bytes);
  // Throws CommandError; the file is what it was before then.
  void Commit();

  const std::string& path() const { return path_; }  // as it was given
  uint64_t size() const { return size_; }
  // Words for people belong on standard error then.
  bool is_standard_output() const { return fd_ == kStandardOutput; }
  // A device, a pipe or standard output, which Commit cannot replace.
  bool in_place() const { return is_standard_output() || written_path_ == target_; }
  // For a writer that opens by name: a file that is there, empty, and of which Commit makes the
  // result. As Write, before Commit.
  const std::string& written_path() const { return written_path_; }

 private:
  static constexpr int kStandardOutput = 1;
  struct Scratch;

  void OpenInPlace(bool truncate);
  void OpenBeside();
  [[noreturn]] void CannotWrite(const std::string& why) const;

  const std::string path_;
  std::string target_;        // path_ behind its links
  std::string written_path_;  // what is open; target_ for devices and pipes
  int fd_ = -1;
  uint64_t size_ = 0;
  const std::shared_ptr<Scratch> scratch_;
  std::shared_ptr<void> remove_at_end_;
};

// Where words for people go: not among the bytes of the result.
std::FILE* WordsOf(const OutputFile& file);
// "wrote FILE (N bytes)"; nothing for standard output.
void PrintWritten(const OutputFile& file);
// Throws UsageError where JSON lines would get among the bytes of the result.
void RefuseJsonAmongBytes(const CommonOptions& options, const OutputFile& file);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_OUTPUT_FILE_H_
