// How a job gets on, on standard error.
#ifndef DENOISED_SERVER_CLI_PROGRESS_H_
#define DENOISED_SERVER_CLI_PROGRESS_H_

#include <cstddef>
#include <string>

#include "denoised/v1/generation.pb.h"

namespace denoised::cli {

// What is said of a job, in at most `columns`: a bar in front where `with_bar` and there is room.
std::string ProgressLine(const v1::Job& job, bool with_bar, size_t columns);

// A line that is rewritten on a terminal, whatever its width and kind (blanks and carriage returns
// only); a line per change elsewhere; nothing where `quiet`.
class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress() { Finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Show(const v1::Job& job);
  // Ends the line that is rewritten. Idempotent.
  void Finish();

 private:
  const bool quiet_, tty_;
  size_t shown_columns_ = 0;  // of the rewritten line; 0 = none is open
  std::string last_line_;     // not repeated
};

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_PROGRESS_H_
