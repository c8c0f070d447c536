#include "runtime/log_writer.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

namespace denoised {
namespace {

// How long the end of a writer waits for a slow reader.
constexpr std::chrono::milliseconds kLastWait{200};

// Blocks for as long as the descriptor does. False where it takes nothing any more.
bool WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = write(fd, text.data(), text.size());
    if (done > 0) {
      text.remove_prefix(static_cast<size_t>(done));
    } else if (errno == EAGAIN) {  // somebody made the shared descriptor non-blocking
      pollfd ready{fd, POLLOUT, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace

struct LogWriter::State {
  State(int to, std::function<std::string(uint64_t)> line)
      : fd(to), dropped_line(std::move(line)) {}

  void Run();
  // Writes without the lock; returns the lines that were lost.
  uint64_t WriteBatch(const std::deque<std::string>& batch, uint64_t unreported) const;

  const int fd;
  const std::function<std::string(uint64_t)> dropped_line;
  std::mutex mutex;
  std::condition_variable changed, written;
  std::deque<std::string> lines;   // guarded by mutex
  size_t bytes = 0;                // guarded by mutex; of `lines`
  uint64_t queued = 0, done = 0;   // guarded by mutex; lines ever
  uint64_t dropped = 0, told = 0;  // guarded by mutex; lines ever, and how many were reported
  bool ending = false;             // guarded by mutex
};

uint64_t LogWriter::State::WriteBatch(const std::deque<std::string>& batch,
                                      uint64_t unreported) const {
  for (size_t i = 0; i < batch.size(); ++i) {
    if (!WriteAll(fd, batch[i])) return batch.size() - i;
  }
  if (unreported > 0) WriteAll(fd, dropped_line(unreported));
  return 0;
}

void LogWriter::State::Run() {
  sigset_t pipe;  // a reader that is gone costs the lines, not the process
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return ending || !lines.empty(); });
    if (lines.empty()) return;
    const std::deque<std::string> batch = std::exchange(lines, {});
    const uint64_t unreported = dropped - std::exchange(told, dropped);
    bytes = 0;
    lock.unlock();
    const uint64_t lost = WriteBatch(batch, unreported);
    lock.lock();
    dropped += lost;
    told += lost;  // there is nobody to tell
    done += batch.size();
    written.notify_all();
  }
}

LogWriter::LogWriter(int fd, std::function<std::string(uint64_t)> dropped_line)
    : state_(std::make_shared<State>(fd, std::move(dropped_line))) {
  std::thread([state = state_] { state->Run(); }).detach();
}

LogWriter::~LogWriter() {
  Flush(kLastWait);
  std::lock_guard lock(state_->mutex);
  state_->ending = true;
  state_->changed.notify_one();
}

void LogWriter::Write(std::string line) {
  {
    std::lock_guard lock(state_->mutex);
    if (state_->lines.size() >= kMaxLines || state_->bytes + line.size() > kMaxBytes) {
      ++state_->dropped;
      return;
    }
    state_->bytes += line.size();
    ++state_->queued;
    state_->lines.push_back(std::move(line));
  }
  state_->changed.notify_one();
}

bool LogWriter::Flush(std::chrono::milliseconds timeout) {
  std::unique_lock lock(state_->mutex);
  const uint64_t target = state_->queued;
  return state_->written.wait_for(lock, timeout, [&] { return state_->done >= target; });
}

uint64_t LogWriter::dropped() const {
  std::lock_guard lock(state_->mutex);
  return state_->dropped;
}

}  // namespace denoised
