// Reading and writing whole regular files, with errors that name them. Torch-free.
//
// Files of a model are opened by ModelFolder alone (model_folder.h), which enters them in the
// model's manifest; everything else that is read goes through loose_file.h.
#ifndef DENOISED_RUNTIME_LOADERS_FILE_H_
#define DENOISED_RUNTIME_LOADERS_FILE_H_

#include <compare>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace denoised {

// What the system says about a file. Equal stamps of one path: the same bytes, unless somebody set
// the machine's clock back.
struct FileStamp {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t modified_ns = 0;  // since the epoch; what touch(1) can set back
  int64_t changed_ns = 0;   // of the inode, which nothing but a write moves

  auto operator<=>(const FileStamp&) const = default;
};

// An open regular file whose stamp is pinned at opening. Bytes are read with pread(2), not through
// a mapping: a file that is cut while open gives an Error, where a mapping would end the process
// with SIGBUS. Reads from several threads are fine.
class ReadOnlyFile {
 public:
  ~ReadOnlyFile();
  ReadOnlyFile(ReadOnlyFile&& other) noexcept;
  ReadOnlyFile(const ReadOnlyFile&) = delete;
  ReadOnlyFile& operator=(const ReadOnlyFile&) = delete;
  ReadOnlyFile& operator=(ReadOnlyFile&&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return stamp_.size; }
  const FileStamp& stamp() const { return stamp_; }

  // Reads exactly `size` bytes at `offset` into `out`. DATA_LOSS where the file has become shorter.
  void ReadAt(uint64_t offset, void* out, uint64_t size) const;
  // The file's bytes; INVALID_ARGUMENT where there are more than `max_bytes`.
  std::string ReadAll(uint64_t max_bytes) const;
  // DATA_LOSS where size or modification time are no longer those of opening.
  void CheckUnchanged() const;

 private:
  friend class ModelFolder;
  friend ReadOnlyFile OpenLooseFile(const std::filesystem::path& path);
  // NOT_FOUND where there is nothing; INVALID_ARGUMENT for folders, FIFOs and devices.
  explicit ReadOnlyFile(const std::filesystem::path& path);

  std::string path_;
  int fd_ = -1;
  FileStamp stamp_;
};

// Writes beside the target, flushes, then renames, so that no half file is ever seen under `path`.
// FAILED_PRECONDITION naming the path and the system's reason.
void WriteWholeFile(const std::filesystem::path& path, std::string_view bytes);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_FILE_H_
