// The folder under which a durable store lives: one process at a time, files that are whole or
// absent, and how much room is left. Torch-free; any thread.
//
//   lock            held while a server runs; its pid, that it was asked to stop, and what it could
//                   note nowhere else
//   jobs.sqlite     the ledger
//   artifacts/      ID.FORMAT, a result
//   checkpoints/    ID, the last state of a run
#ifndef DENOISED_RUNTIME_STORE_STATE_FOLDER_H_
#define DENOISED_RUNTIME_STORE_STATE_FOLDER_H_

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/store/hooks.h"

namespace denoised {

// A descriptor that ends with its owner.
class OwnedFd {
 public:
  explicit OwnedFd(int fd = -1) : fd_(fd) {}
  ~OwnedFd();
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  OwnedFd& operator=(OwnedFd&&) = delete;

  int get() const { return fd_; }

 private:
  int fd_;
};

// So that names that were made or changed in it outlive a cut of the power, where it can be.
void SyncFolder(const std::filesystem::path& path);

// Made where it is missing, for its owner alone: prompts are people's own. What is kept in it is
// kept when the power fails, so its name is too, and those of the new folders above it. Throws
// FAILED_PRECONDITION (STATE_DIR_UNUSABLE). Returns its argument.
const std::filesystem::path& MakeFolder(const std::filesystem::path& path);

// One folder of files that are written once.
class FileFolder {
 public:
  // Made where it is missing. `kind` begins the names of its edges (hooks.h).
  FileFolder(const std::filesystem::path& path, std::string kind, StoreHooks* hooks);

  // The bytes of `pieces` one after the other, durable under `name` when this returns: a part file,
  // its sync, the rename, the folder's sync. RESOURCE_EXHAUSTED (DISK), and nothing is left then.
  void Write(const std::string& name, std::initializer_list<std::string_view> pieces) const;
  // Empty where there is no such file; UNAVAILABLE where it cannot be opened.
  std::optional<OwnedFd> Open(const std::string& name) const;
  void Remove(const std::string& name) const;
  std::vector<std::string> Names() const;

 private:
  void WritePart(const std::string& part, std::initializer_list<std::string_view> pieces) const;
  void At(std::string_view edge) const;
  [[noreturn]] void Fail(const std::string& name) const;

  const std::filesystem::path path_;
  const std::string kind_;
  StoreHooks* const hooks_;
  const OwnedFd folder_;
};

// Reads up to `count` bytes; fewer at the file's end. DATA_LOSS, naming `name`, where that fails.
size_t ReadFrom(const OwnedFd& file, uint64_t offset, char* to, size_t count,
                const std::string& name);
uint64_t SizeOf(const OwnedFd& file);

// What a server notes in the lock's file, for the next one.
struct LockNotes {
  uint64_t life = 0;  // servers that had the folder until then, it among them
  bool stop = false;  // it was asked to stop
  // Jobs whose fault its end was; unset where it could not tell.
  std::optional<std::set<std::string>> blamed;
  std::set<std::string> ids;  // jobs that it parked, and the ledger did not take it
};

class StateFolder {
 public:
  // Takes the lock. FAILED_PRECONDITION: STATE_DIR_IN_USE names folder and pid; else what cannot be
  // made or written.
  StateFolder(const std::filesystem::path& path, StoreHooks* hooks);

  // What the last server here noted. It stays noted until ForgetLast: a server that dies at its
  // start may have written none of it to the ledger.
  const LockNotes& last() const { return last_; }
  void ForgetLast();
  // Counts the servers that had the folder, this one among them, also those that found no room on
  // its disk.
  uint64_t life() const { return last_.life + 1; }
  // For the next one, where the ledger takes nothing: in the lock's file, which has its room
  // already, for about a hundred ids.
  void Note(const std::string& id);
  // Likewise; these outlive the process when they return, and wait for no disk.
  void NoteStop();
  void NoteBlame(const std::optional<std::vector<std::string>>& ids);

  std::filesystem::path ledger() const { return path_ / "jobs.sqlite"; }
  const FileFolder& artifacts() const { return artifacts_; }
  const FileFolder& checkpoints() const { return checkpoints_; }

  // Why a new job of `bytes` finds no room: it would leave less free than 32 MiB, or a sixteenth of
  // a small file system. That much is kept for the ends of jobs that are here.
  std::optional<std::string> WhyNoRoom(uint64_t bytes) const;
  // Throws RESOURCE_EXHAUSTED (DISK) where a file of `bytes` would leave less than half of that.
  void RequireRoom(uint64_t bytes) const;

 private:
  struct Room {
    uint64_t free = 0, low = 0;
  };
  Room Look() const;
  void WriteNotes();  // under mutex_
  void Sync() const;

  const std::filesystem::path path_;
  StoreHooks* const hooks_;
  const OwnedFd lock_;
  const LockNotes last_;
  const FileFolder artifacts_, checkpoints_;
  std::mutex mutex_;
  LockNotes own_, carried_;  // guarded by mutex_; `carried_`: of last_, until it is forgotten
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_STATE_FOLDER_H_
