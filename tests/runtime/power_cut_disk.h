// A disk under SQLite that loses its power: what was written and not synced is forgotten then, or
// some of it is not. A shim over SQLite's own VFS, which keeps its default's place while it lives.
#ifndef DENOISED_TESTS_RUNTIME_POWER_CUT_DISK_H_
#define DENOISED_TESTS_RUNTIME_POWER_CUT_DISK_H_

#include <sqlite3.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace denoised {

// Between two syncs of a file its sectors of 512 bytes, its size, and in its folder names that were
// made and removed reach the disk each by itself, in any order or not at all; where the size did
// and the bytes did not, there is garbage. A journal that is synced first has its name synced with
// it, as SQLite's own VFS does. Nothing is written to the files themselves before the cut: until
// then they are here, and afterwards every write fails. One folder, one connection.
class PowerCutDisk {
 public:
  struct Cut {
    int64_t at = 0;  // before the at-th operation that changes something; or at the disk's end
    bool loses_all = false;  // of what was not synced, else some
    uint32_t seed = 0;
  };
  // `synchronous`: what the connection is to have in place of what it asks for; "" = that.
  PowerCutDisk(const std::filesystem::path& folder, const Cut& cut,
               const std::string& synchronous = "");
  // Cuts where that has not been, and leaves in the folder what is left. No connection is open.
  ~PowerCutDisk();
  PowerCutDisk(const PowerCutDisk&) = delete;
  PowerCutDisk& operator=(const PowerCutDisk&) = delete;

  bool dark() const;

 private:
  struct Change {
    bool truncates = false;
    int64_t offset = 0;  // or the new size
    std::string bytes;
  };
  struct File {
    std::string now, synced;
    std::vector<Change> since;  // the sync
  };
  using FilePtr = std::shared_ptr<File>;
  using Names = std::map<std::string, FilePtr>;
  struct Handle;
  struct Calls;  // what SQLite calls
  friend struct Calls;

  // All below under mutex_. False: there is no power any more.
  bool Changes();
  FilePtr Find(const std::string& name);
  void LosePower();
  std::string Survives(const File& file);
  void Apply(const Change& change, std::string* bytes);
  void Grow(size_t size, std::string* bytes);
  bool Keeps();

  const std::filesystem::path folder_;
  const Cut cut_;
  const std::string synchronous_;
  mutable std::mutex mutex_;
  std::minstd_rand random_;
  double kept_share_ = 0;
  int64_t operations_ = 0;
  bool dark_ = false;
  Names names_, synced_names_;
  std::map<std::string, std::string> left_;  // after the cut
  sqlite3_vfs vfs_ = {};
  sqlite3_vfs* const own_;  // SQLite's
};

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_POWER_CUT_DISK_H_
