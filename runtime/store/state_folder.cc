#include "runtime/store/state_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "backends/error.h"
#include "runtime/store/disk_full.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;

Error Unusable(const fs::path& path, const std::string& why) {
  return Error(StatusCode::kFailedPrecondition, "state_dir: " + path.string() + ": " + why,
               "state_dir", "STATE_DIR_UNUSABLE");
}

std::string MiB(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::string PidIn(int lock) {
  std::string text(32, '\0');
  const ssize_t count = pread(lock, text.data(), text.size(), 0);
  text.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  return text.substr(0, text.find_first_not_of("0123456789"));
}

int TakeLock(const fs::path& folder) {
  const fs::path path = folder / "lock";
  OwnedFd lock(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (lock.get() < 0) throw Unusable(path, std::strerror(errno));
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    const std::string pid = PidIn(lock.get());
    throw Error(StatusCode::kFailedPrecondition,
                "state_dir: " + folder.string() + " is in use by another server" +
                    (pid.empty() ? "" : ", process " + pid),
                "state_dir", "STATE_DIR_IN_USE");
  }
  return fcntl(lock.get(), F_DUPFD_CLOEXEC, 0);  // the lock lasts as long as one of its descriptors
}

// A page of text: the pid, "life " and its number, the stop, "blame" and then with each id, then a
// noted id a line, blanks to its end. No id has a blank in it.
constexpr size_t kLockBytes = 4096;
constexpr std::string_view kLife = "life ", kStop = "asked to stop", kBlame = "blame";

// All but the pid.
std::set<std::string> LinesIn(const OwnedFd& lock) {
  std::string text(kLockBytes, '\0');
  text.resize(
      static_cast<size_t>(std::max<ssize_t>(pread(lock.get(), text.data(), text.size(), 0), 0)));
  std::set<std::string> lines;
  size_t begin = text.find('\n');
  for (size_t end; begin != std::string::npos; begin = end) {
    end = text.find('\n', ++begin);
    if (end != std::string::npos) lines.insert(text.substr(begin, end - begin));
  }
  return lines;
}

LockNotes NotesIn(const OwnedFd& lock) {
  LockNotes notes;
  for (const std::string& line : LinesIn(lock)) {
    if (line.starts_with(kLife)) {
      std::from_chars(line.data() + kLife.size(), line.data() + line.size(), notes.life);
      notes.life = std::min(notes.life, uint64_t{1} << 32);
    } else if (line == kStop) {
      notes.stop = true;
    } else if (line == kBlame) {
      if (!notes.blamed) notes.blamed.emplace();
    } else if (line.starts_with(std::string(kBlame) + " ")) {
      if (!notes.blamed) notes.blamed.emplace();
      notes.blamed->insert(line.substr(kBlame.size() + 1));
    } else {
      notes.ids.insert(line);
    }
  }
  return notes;
}

std::string PageOf(const LockNotes& notes) {
  std::string page = std::to_string(getpid()) + "\n";
  page += std::string(kLife) + std::to_string(notes.life) + "\n";
  if (notes.stop) page += std::string(kStop) + "\n";
  if (notes.blamed) page += std::string(kBlame) + "\n";
  for (const std::string& id : notes.blamed.value_or(std::set<std::string>())) {
    page += std::string(kBlame) + " " + id + "\n";
  }
  for (const std::string& id : notes.ids) page += id + "\n";
  return page;
}

bool WriteFully(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

void SyncFolder(const fs::path& path) {
  const OwnedFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() >= 0) (void)!fsync(folder.get());
}

const fs::path& MakeFolder(const fs::path& path) {
  std::error_code error;
  std::vector<fs::path> fresh;
  for (fs::path folder = fs::absolute(path);
       !fs::exists(folder, error) && folder != folder.root_path(); folder = folder.parent_path()) {
    fresh.push_back(folder);
  }
  fs::create_directories(path, error);
  if (error) throw Unusable(path, "cannot be made (" + error.message() + ")");
  if (!fresh.empty()) fs::permissions(path, fs::perms::owner_all, error);
  for (const fs::path& folder : fresh) SyncFolder(folder.parent_path());
  return path;
}

// ---- FileFolder

FileFolder::FileFolder(const fs::path& path, std::string kind, StoreHooks* hooks)
    : path_(MakeFolder(path)),
      kind_(std::move(kind)),
      hooks_(hooks),
      folder_(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (folder_.get() < 0) throw Unusable(path, std::strerror(errno));
}

void FileFolder::At(std::string_view edge) const {
  if (hooks_ != nullptr) hooks_->At(kind_ + std::string(edge));
}

void FileFolder::Fail(const std::string& name) const {
  throw DiskFull((path_ / name).string() + ": " + std::strerror(errno));
}

void FileFolder::WritePart(const std::string& part,
                           std::initializer_list<std::string_view> pieces) const {
  const OwnedFd file(openat(folder_.get(), part.c_str(),
                            O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.get() < 0) Fail(part);
  for (const std::string_view piece : pieces) {
    const size_t half = piece.size() / 2;
    if (!WriteFully(file.get(), piece.substr(0, half))) Fail(part);
    At(".half_written");
    if (!WriteFully(file.get(), piece.substr(half))) Fail(part);
  }
  if (fsync(file.get()) != 0) Fail(part);
}

void FileFolder::Write(const std::string& name,
                       std::initializer_list<std::string_view> pieces) const {
  const std::string part = name + ".part";
  try {
    WritePart(part, pieces);
    At(".before_rename");
    if (renameat(folder_.get(), part.c_str(), folder_.get(), name.c_str()) != 0) Fail(name);
    if (fsync(folder_.get()) != 0) Fail(name);
  } catch (...) {
    Remove(part);
    throw;
  }
  At(".after_rename");
}

std::optional<OwnedFd> FileFolder::Open(const std::string& name) const {
  OwnedFd file(openat(folder_.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.get() >= 0) return file;
  if (errno == ENOENT) return std::nullopt;
  throw Error(StatusCode::kUnavailable, (path_ / name).string() + ": " + std::strerror(errno));
}

void FileFolder::Remove(const std::string& name) const { unlinkat(folder_.get(), name.c_str(), 0); }

std::vector<std::string> FileFolder::Names() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path_)) {
    if (!entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  return names;
}

size_t ReadFrom(const OwnedFd& file, uint64_t offset, char* to, size_t count,
                const std::string& name) {
  size_t done = 0;
  while (done < count) {
    const ssize_t got =
        pread(file.get(), to + done, count - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(StatusCode::kDataLoss, name + ": " + std::strerror(errno));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

uint64_t SizeOf(const OwnedFd& file) {
  struct stat status {};
  return fstat(file.get(), &status) == 0 ? static_cast<uint64_t>(status.st_size) : 0;
}

// ---- StateFolder

StateFolder::StateFolder(const fs::path& path, StoreHooks* hooks)
    : path_(MakeFolder(path)),
      hooks_(hooks),
      lock_(TakeLock(path)),
      last_(NotesIn(lock_)),
      artifacts_(path / "artifacts", "artifact", hooks),
      checkpoints_(path / "checkpoints", "checkpoint", hooks),
      carried_(last_) {
  own_.life = last_.life + 1;
  const std::lock_guard lock(mutex_);
  WriteNotes();
  Sync();
}

void StateFolder::Note(const std::string& id) {
  {
    const std::lock_guard lock(mutex_);
    own_.ids.insert(id);
    WriteNotes();
  }
  Sync();
}

void StateFolder::NoteStop() {
  const std::lock_guard lock(mutex_);
  own_.stop = true;
  WriteNotes();
}

void StateFolder::NoteBlame(const std::optional<std::vector<std::string>>& ids) {
  const std::lock_guard lock(mutex_);
  own_.blamed.reset();
  if (ids) own_.blamed.emplace(ids->begin(), ids->end());
  WriteNotes();
}

void StateFolder::ForgetLast() {
  const std::lock_guard lock(mutex_);
  carried_ = {};
  WriteNotes();
}

// Only words for the next one: the lock holds without them, also on a full disk. Ids that find no
// room are left out.
void StateFolder::WriteNotes() {
  LockNotes notes = own_;
  notes.stop |= carried_.stop;
  if (!notes.blamed) notes.blamed = carried_.blamed;
  notes.ids.insert(carried_.ids.begin(), carried_.ids.end());
  std::string page = PageOf(notes);
  page.resize(kLockBytes, ' ');
  (void)!pwrite(lock_.get(), page.data(), page.size(), 0);
}

void StateFolder::Sync() const { (void)!fdatasync(lock_.get()); }

StateFolder::Room StateFolder::Look() const {
  struct statvfs system {};
  if (statvfs(path_.c_str(), &system) != 0) return {UINT64_MAX, 0};  // a write will tell
  const uint64_t block = system.f_frsize;
  uint64_t free = system.f_bavail * block;
  if (hooks_ != nullptr) free = hooks_->FreeBytes(free);
  return {free, std::min(uint64_t{32} << 20, system.f_blocks * block / 16)};
}

std::optional<std::string> StateFolder::WhyNoRoom(uint64_t bytes) const {
  const Room room = Look();
  if (room.free >= bytes && room.free - bytes >= room.low) return std::nullopt;
  return "the disk of the state folder " + path_.string() + " is full: " + MiB(room.free) +
         " are free, and " + MiB(room.low) + " are kept free";
}

void StateFolder::RequireRoom(uint64_t bytes) const {
  const Room room = Look();
  if (room.free >= bytes && room.free - bytes >= room.low / 2) return;
  throw DiskFull("the disk of the state folder " + path_.string() + " has no room for a file of " +
                 MiB(bytes) + ": " + MiB(room.free) + " are free");
}

}  // namespace denoised
