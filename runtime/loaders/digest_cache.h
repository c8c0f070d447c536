// Digests of large files, kept between two starts so that a server need not read 28 GB to know what
// it has. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_DIGEST_CACHE_H_
#define DENOISED_RUNTIME_LOADERS_DIGEST_CACHE_H_

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "runtime/loaders/file.h"

namespace denoised {

// A file in the state folder with a line a file: the digest, the stamp it was taken under, the
// path. A digest is found only where path and whole stamp are the same; a write that puts size and
// modification time back still moves the inode's own time. One thread.
class DigestCache {
 public:
  // Remembers what `file` holds; a missing or broken one counts as empty. "" remembers nothing.
  explicit DigestCache(std::filesystem::path file);

  std::optional<std::string> Find(const std::string& path, const FileStamp& stamp) const;
  // Not kept where the file was written so lately that a further write could bear the same time.
  void Put(const std::string& path, const FileStamp& stamp, const std::string& sha256);

  // Writes what was put since the last time; files that are gone are left out. Throws Error where
  // that fails.
  void Save();

 private:
  struct Known {
    FileStamp stamp;
    std::string sha256;
  };
  void ReadLine(const std::string& line);

  const std::filesystem::path file_;
  std::map<std::string, Known> known_;
  bool changed_ = false;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_DIGEST_CACHE_H_
