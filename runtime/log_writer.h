// Lines on their way to a descriptor. Whoever logs only puts a line into a bounded queue; a thread
// of the writer's own does the writing, so that a reader who stopped reading (a full pipe, a stuck
// terminal) holds up nobody but that thread. What finds no room is dropped and counted.
#ifndef DENOISED_RUNTIME_LOG_WRITER_H_
#define DENOISED_RUNTIME_LOG_WRITER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace denoised {

class LogWriter {
 public:
  // What the queue holds at most.
  static constexpr size_t kMaxLines = 8192;
  static constexpr size_t kMaxBytes = size_t{4} << 20;

  // `fd` is borrowed. `dropped_line(n)` is the line that says that n lines were dropped; it is
  // written in their place as soon as the descriptor takes something again.
  LogWriter(int fd, std::function<std::string(uint64_t)> dropped_line);
  // Waits a moment for what is queued. A write that is stuck by then is left behind with the
  // thread inside it; the end of the process ends both.
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  // Any thread, never blocks. `line` ends with a newline.
  void Write(std::string line);
  // True once everything that was queued before is written; waits at most `timeout`.
  bool Flush(std::chrono::milliseconds timeout);
  // Lines dropped so far.
  uint64_t dropped() const;

 private:
  struct State;
  const std::shared_ptr<State> state_;  // shared with the thread, which may outlive the writer
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOG_WRITER_H_
