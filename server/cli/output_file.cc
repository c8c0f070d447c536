#include "server/cli/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>
#include <random>

#include "server/cli/output.h"

namespace denoised::cli {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kNewFile = 0666;  // less the umask
constexpr mode_t kPermissions = 0777;

std::optional<struct stat> Stat(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 ? std::optional(info) : std::nullopt;
}

// A name for something that is open already: there is no folder to put another file into.
bool IsDescriptor(const std::string& path) {
  return path.starts_with("/dev/fd/") || path.starts_with("/dev/std") || path.starts_with("/proc/");
}

// The same pipe or file as standard output: what is written there by another way would be lost or
// mixed with it.
bool IsStandardOutput(const std::string& path) {
  if (path == "-") return true;
  struct stat ours {};
  const auto info = Stat(path);
  if (!info || fstat(STDOUT_FILENO, &ours) != 0 || S_ISCHR(info->st_mode)) return false;
  return info->st_dev == ours.st_dev && info->st_ino == ours.st_ino;
}

// The path behind `path`'s links; what it names need not exist. Empty where they go in a circle.
std::string FollowLinks(const std::string& path) {
  constexpr int kMostLinks = 40;  // as Linux itself
  fs::path at = path;
  for (int i = 0; i < kMostLinks; ++i) {
    std::error_code error;
    if (IsDescriptor(at) || !fs::is_symlink(at, error)) return at;
    const fs::path next = fs::read_symlink(at, error);
    if (error) return at;
    at = next.is_absolute() ? next : at.parent_path() / next;
  }
  return "";
}

std::string ScratchName() {
  std::random_device device;
  std::array<char, 40> text;
  std::snprintf(text.data(), text.size(), ".denoisectl-%08x%08x.part", device(), device());
  return text.data();
}

}  // namespace

// The name to remove: by the owner, or by the signal that ends the program.
struct OutputFile::Scratch {
  std::mutex mutex;
  std::string path;  // "" = nothing to remove

  void Remove() {
    std::lock_guard lock(mutex);
    if (!path.empty()) unlink(path.c_str());
    path.clear();
  }
};

OutputFile::OutputFile(const std::string& path, Interrupts* interrupts)
    : path_(path),
      target_(FollowLinks(path)),
      scratch_(std::make_shared<Scratch>()),
      remove_at_end_(interrupts->AtEnd([scratch = scratch_] { scratch->Remove(); })) {
  if (IsStandardOutput(path)) {
    fd_ = kStandardOutput;
    written_path_ = "/dev/stdout";
  } else {
    if (target_.empty()) CannotWrite(std::strerror(ELOOP));
    const auto info = Stat(target_);
    const bool folder = info && S_ISDIR(info->st_mode);
    if (folder || fs::path(target_).filename().empty()) CannotWrite("it is a folder");
    const bool regular = info && S_ISREG(info->st_mode);
    if (IsDescriptor(target_) || (info && !regular)) {
      OpenInPlace(/*truncate=*/regular);
    } else {
      OpenBeside();
    }
  }
  if (isatty(fd_) == 0) return;
  if (!is_standard_output()) close(fd_);
  throw UsageError("the result does not go to a terminal; name a file, or send it on with > or |");
}

void OutputFile::OpenInPlace(bool truncate) {
  written_path_ = target_;
  fd_ = open(target_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY | (truncate ? O_TRUNC : 0));
  if (fd_ < 0) CannotWrite(std::strerror(errno));
}

void OutputFile::OpenBeside() {
  const auto old = Stat(target_);
  if (old && access(target_.c_str(), W_OK) != 0) CannotWrite(std::strerror(errno));
  const std::string folder = fs::path(target_).parent_path();
  const std::string name = (folder.empty() ? "." : folder) + "/" + ScratchName();
  std::lock_guard lock(scratch_->mutex);  // a signal now waits until the name is known
  fd_ = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kNewFile);
  if (fd_ < 0) CannotWrite("its folder: " + std::string(std::strerror(errno)));
  if (old) fchmod(fd_, old->st_mode & kPermissions);
  scratch_->path = written_path_ = name;
}

OutputFile::~OutputFile() {
  if (fd_ >= 0 && !is_standard_output()) close(fd_);
  scratch_->Remove();
}

void OutputFile::CannotWrite(const std::string& why) const {
  throw CommandError("cannot write " + path_ + ": " + why);
}

void OutputFile::Write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EPIPE && is_standard_output()) throw ReaderLeft();
    if (written < 0) CannotWrite(std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(written));
    size_ += static_cast<uint64_t>(written);
  }
}

void OutputFile::Commit() {
  if (is_standard_output()) return;
  const bool closed = close(fd_) == 0;
  fd_ = -1;
  if (!closed) CannotWrite(std::strerror(errno));
  std::lock_guard lock(scratch_->mutex);
  if (scratch_->path.empty()) return;
  if (rename(scratch_->path.c_str(), target_.c_str()) != 0) CannotWrite(std::strerror(errno));
  scratch_->path.clear();
}

std::FILE* WordsOf(const OutputFile& file) { return file.is_standard_output() ? stderr : stdout; }

void PrintWritten(const OutputFile& file) {
  if (file.is_standard_output()) return;
  PrintLine("wrote " + file.path() + " (" + std::to_string(file.size()) + " bytes)");
}

void RefuseJsonAmongBytes(const CommonOptions& options, const OutputFile& file) {
  if (!options.json || !file.is_standard_output()) return;
  throw UsageError("--json prints on standard output, where the result goes; name a file for it");
}

}  // namespace denoised::cli
