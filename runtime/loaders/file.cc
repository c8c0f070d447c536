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

int64_t Nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

FileStamp StampOf(const struct stat& info) {
  return {info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size), Nanoseconds(info.st_mtim),
          Nanoseconds(info.st_ctim)};
}

// Why nothing is there; Hugging Face's cache is made of links, and a half download leaves them
// open.
Error CannotOpen(const std::string& path, int error) {
  const bool absent = error == ENOENT || error == ENOTDIR;
  const std::string message = path + ": cannot be opened: " + Reason(error);
  std::error_code no_link;
  const std::filesystem::path target = std::filesystem::read_symlink(path, no_link);
  if (!absent || no_link) {
    return Error(absent ? StatusCode::kNotFound : StatusCode::kInvalidArgument, message, path);
  }
  return Error(StatusCode::kNotFound,
               message + ": it is a link to " + target.string() +
                   ", which is not there (a download that is not complete?)",
               path, "INCOMPLETE_DOWNLOAD");
}

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
  if (fd_ < 0) throw CannotOpen(path_, errno);
  struct stat info;
  if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd_);
    throw Error(StatusCode::kInvalidArgument, path_ + ": wanted a regular file", path_);
  }
  stamp_ = StampOf(info);
}

ReadOnlyFile::~ReadOnlyFile() {
  if (fd_ >= 0) close(fd_);
}

ReadOnlyFile::ReadOnlyFile(ReadOnlyFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), stamp_(other.stamp_) {}

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

std::string ReadOnlyFile::ReadAll(uint64_t max_bytes) const {
  if (size() > max_bytes) {
    throw Error(StatusCode::kInvalidArgument,
                path_ + ": wanted at most " + std::to_string(max_bytes) + " bytes, came " +
                    std::to_string(size()),
                path_);
  }
  std::string bytes(size(), '\0');
  ReadAt(0, bytes.data(), bytes.size());
  return bytes;
}

void ReadOnlyFile::CheckUnchanged() const {
  const FileStamp now = StampOf(Stat(fd_, path_));
  // Not the inode's own time: a link that is made or renamed meanwhile harms nobody.
  if (now.size == size() && now.modified_ns == stamp_.modified_ns) return;
  throw Error(StatusCode::kDataLoss,
              path_ + ": the file changed after it was opened (" + std::to_string(size()) +
                  " bytes then, " + std::to_string(now.size) + " now)",
              path_);
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
