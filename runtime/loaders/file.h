// Reading and writing whole regular files, with errors that name them. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_FILE_H_
#define DENOISED_RUNTIME_LOADERS_FILE_H_

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <string>
#include <string_view>

namespace denoised {

// An open regular file whose size and modification time are pinned at opening. Bytes are read with
// pread(2), not through a mapping: a file that is cut while open gives an Error, where a mapping
// would end the process with SIGBUS. Reads from several threads are fine.
class ReadOnlyFile {
 public:
  // NOT_FOUND where there is nothing; INVALID_ARGUMENT for folders, FIFOs and devices.
  explicit ReadOnlyFile(const std::filesystem::path& path);
  ~ReadOnlyFile();
  ReadOnlyFile(ReadOnlyFile&& other) noexcept;
  ReadOnlyFile(const ReadOnlyFile&) = delete;
  ReadOnlyFile& operator=(const ReadOnlyFile&) = delete;
  ReadOnlyFile& operator=(ReadOnlyFile&&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }

  // Reads exactly `size` bytes at `offset` into `out`. DATA_LOSS where the file has become shorter.
  void ReadAt(uint64_t offset, void* out, uint64_t size) const;
  // DATA_LOSS where size or modification time are no longer those of opening.
  void CheckUnchanged() const;

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
  timespec modified_{};
};

// The file's bytes; INVALID_ARGUMENT where there are more than `max_bytes`.
std::string ReadWholeFile(const std::filesystem::path& path, uint64_t max_bytes);

// Writes beside the target, flushes, then renames, so that no half file is ever seen under `path`.
// FAILED_PRECONDITION naming the path and the system's reason.
void WriteWholeFile(const std::filesystem::path& path, std::string_view bytes);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_FILE_H_
