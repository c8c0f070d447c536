// What denoisectl writes: result files, JSON lines, progress, receipts and tables for people.
#ifndef DENOISED_SERVER_CLI_OUTPUT_H_
#define DENOISED_SERVER_CLI_OUTPUT_H_

#include <google/protobuf/message.h>

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "denoised/v1/generation.pb.h"

namespace denoised::cli {

// A result file. Written beside its place and renamed at the end, so that a broken run leaves what
// was there before.
class OutputFile {
 public:
  // Opens at once: a path that cannot be written fails before any work is asked for. Throws
  // CommandError naming the path.
  explicit OutputFile(const std::string& path);
  ~OutputFile();  // removes what was not committed
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void Write(const std::string& bytes);
  void Commit();
  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }

 private:
  const std::string path_;
  std::string written_path_;  // path_ where it is a device or pipe
  std::FILE* file_ = nullptr;
  uint64_t size_ = 0;
};

// By the path's ending; throws UsageError that lists the endings.
v1::ArtifactFormat FormatOfPath(const std::string& path);

// With the proto's field names.
std::string Json(const google::protobuf::Message& message);
// One line of it on stdout.
void PrintJson(const google::protobuf::Message& message);

// Follows a job on stderr: a bar on a terminal, a line per change elsewhere.
class Progress {
 public:
  explicit Progress(bool quiet);
  void Show(const v1::Job& job);
  void Finish();

 private:
  const bool quiet_, tty_;
  bool open_ = false;      // a bar without its line end is on the screen
  std::string last_line_;  // not repeated
};

// Which backend ran for each role and why others did not, the seed and the fingerprint; on stdout.
void PrintReceipt(const v1::Job& job);

// Columns padded to their widest cell; on stdout. The first row is the head.
void PrintTable(const std::vector<std::vector<std::string>>& rows);

// Who decided for a backend, in words; `source` as in ReceiptEntry.
std::string WhoChose(const std::string& source, const std::string& lease_id);

// Text of other people on one line: control characters become '?', at most `limit` bytes.
std::string OneLine(const std::string& text, size_t limit);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_OUTPUT_H_
