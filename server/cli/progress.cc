#include "server/cli/progress.h"

#include <google/protobuf/util/time_util.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "server/cli/text.h"

namespace denoised::cli {
namespace {

constexpr size_t kMostBar = 30, kLeastBar = 6;
constexpr size_t kAssumedColumns = 80;
constexpr size_t kUnlimited = 1000;

std::string Words(const v1::Job& job) {
  if (job.state() == v1::QUEUED) {
    return "queued, " + std::to_string(job.queue_position()) + " before it";
  }
  const std::string stage = job.stage() == "none" ? "starting" : job.stage();
  std::string text = job.state() == v1::RUNNING ? stage : v1::JobState_Name(job.state());
  text += " " + std::to_string(job.step()) + "/" + std::to_string(job.num_steps()) + " steps";
  if (job.has_eta() && job.state() == v1::RUNNING) {
    const double left = google::protobuf::util::TimeUtil::DurationToMilliseconds(job.eta()) / 1e3;
    text += ", " + std::to_string(static_cast<int64_t>(std::ceil(left))) + " s left";
  }
  return text;
}

std::string Bar(const v1::Job& job, size_t width) {
  const double steps = static_cast<double>(std::max<int64_t>(job.num_steps(), 1));
  const double share = std::clamp(static_cast<double>(job.step()) / steps, 0.0, 1.0);
  const auto done = static_cast<size_t>(share * static_cast<double>(width));
  return "[" + std::string(done, '#') + std::string(width - done, '-') + "] ";
}

size_t TerminalColumns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kAssumedColumns;
  return size.ws_col;
}

}  // namespace

std::string ProgressLine(const v1::Job& job, bool with_bar, size_t columns) {
  const std::string words = OneLine(Words(job), columns);
  const size_t taken = DisplayWidth(words) + 3;  // brackets and a blank
  const size_t room = columns > taken ? columns - taken : 0;
  const bool bar = with_bar && job.state() != v1::QUEUED && room >= kLeastBar;
  return (bar ? Bar(job, std::min(kMostBar, room)) : "") + words;
}

Progress::Progress(bool quiet) : quiet_(quiet), tty_(isatty(STDERR_FILENO) != 0) {}

void Progress::Show(const v1::Job& job) {
  if (quiet_) return;
  // The last column stays free: terminals differ in what they do after it.
  const size_t columns = tty_ ? std::max<size_t>(2, TerminalColumns()) - 1 : kUnlimited;
  const std::string line = ProgressLine(job, tty_, columns);
  if (line == last_line_) return;
  last_line_ = line;
  if (!tty_) {
    std::fprintf(stderr, "%s\n", line.c_str());
    return;
  }
  const size_t width = DisplayWidth(line);
  const size_t blanks =
      std::min(shown_columns_, columns) - std::min({shown_columns_, columns, width});
  std::fprintf(stderr, "\r%s%s", line.c_str(), std::string(blanks, ' ').c_str());
  shown_columns_ = width;
}

void Progress::Finish() {
  if (shown_columns_ > 0) std::fputc('\n', stderr);
  shown_columns_ = 0;
}

}  // namespace denoised::cli
