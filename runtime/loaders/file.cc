#include "runtime/loaders/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "backends/error.h"

namespace denoised {
namespace {

std::string Reason(int error) { return std::generic_category().message(error); }

// Linux reads at most 2 GiB a call.
constexpr uint64_t kMaxRead = uint64_t{1} << 30;

struct stat Stat(int fd, const std::string& path) {
  struct stat info;
  if (fstat(fd, &info) != 0) {
    throw Error(StatusCode::kDataLoss, path + ": cannot be examined: " + Reason(errno), path);
  }
  return info;
}

void WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t wrote = write(fd, bytes.data(), std::min<uint64_t>(bytes.size(), kMaxRead));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      throw Error(StatusCode::kFailedPrecondition, path + ": cannot write: " + Reason(errno), path);
    }
    bytes.remove_prefix(static_cast<size_t>(wrote));
  }
}

}  // namespace

ReadOnlyFile::ReadOnlyFile(const std::filesystem::path& path) : path_(path.string()) {
  // O_NONBLOCK so that a FIFO without a writer cannot hold us.
  fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd_ < 0) {
    const bool absent = errno == ENOENT || errno == ENOTDIR;
    throw Error(absent ? StatusCode::kNotFound : StatusCode::kInvalidArgument,
                path_ + ": cannot be opened: " + Reason(errno), path_);
  }
  struct stat info;
  if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd_);
    throw Error(StatusCode::kInvalidArgument, path_ + ": wanted a regular file", path_);
  }
  size_ = static_cast<uint64_t>(info.st_size);
  modified_ = info.st_mtim;
}

ReadOnlyFile::~ReadOnlyFile() {
  if (fd_ >= 0) close(fd_);
}

ReadOnlyFile::ReadOnlyFile(ReadOnlyFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      modified_(other.modified_) {}

void ReadOnlyFile::ReadAt(uint64_t offset, void* out, uint64_t size) const {
  char* to = static_cast<char*>(out);
  while (size > 0) {
    const ssize_t got = pread(fd_, to, std::min(size, kMaxRead), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      const std::string why = got < 0 ? Reason(errno) : "the file has become shorter";
      throw Error(StatusCode::kDataLoss,
                  path_ + ": cannot read byte " + std::to_string(offset) + ": " + why, path_);
    }
    to += got;
    offset += static_cast<uint64_t>(got);
    size -= static_cast<uint64_t>(got);
  }
}

void ReadOnlyFile::CheckUnchanged() const {
  const struct stat info = Stat(fd_, path_);
  if (static_cast<uint64_t>(info.st_size) == size_ && info.st_mtim.tv_sec == modified_.tv_sec &&
      info.st_mtim.tv_nsec == modified_.tv_nsec) {
    return;
  }
  throw Error(StatusCode::kDataLoss,
              path_ + ": the file changed after it was opened (" + std::to_string(size_) +
                  " bytes then, " + std::to_string(info.st_size) + " now)",
              path_);
}

std::string ReadWholeFile(const std::filesystem::path& path, uint64_t max_bytes) {
  const ReadOnlyFile file(path);
  if (file.size() > max_bytes) {
    throw Error(StatusCode::kInvalidArgument,
                file.path() + ": wanted at most " + std::to_string(max_bytes) + " bytes, came " +
                    std::to_string(file.size()),
                file.path());
  }
  std::string bytes(file.size(), '\0');
  file.ReadAt(0, bytes.data(), bytes.size());
  return bytes;
}

void WriteWholeFile(const std::filesystem::path& path, std::string_view bytes) {
  const std::string target = path.string();
  const std::string part = target + ".part." + std::to_string(getpid());
  const int fd = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) {
    throw Error(StatusCode::kFailedPrecondition, target + ": cannot be written: " + Reason(errno),
                target);
  }
  try {
    WriteAll(fd, bytes, target);
    if (fsync(fd) != 0 || rename(part.c_str(), target.c_str()) != 0) {
      throw Error(StatusCode::kFailedPrecondition, target + ": cannot be written: " + Reason(errno),
                  target);
    }
  } catch (...) {
    close(fd);
    unlink(part.c_str());
    throw;
  }
  close(fd);
}

}  // namespace denoised
