// A folder that goes away with its owner.
#ifndef DENOISED_TESTS_TEMPORARY_FOLDER_H_
#define DENOISED_TESTS_TEMPORARY_FOLDER_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "tests/eventually.h"

namespace denoised {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    // In memory where there is such a place: what is tested is order, not the disk's patience.
    const bool quick = access("/dev/shm", W_OK) == 0;
    std::string name = (quick ? std::string("/dev/shm") : testing::TempDir()) + "/denoised_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// What a folder holds now: again where a file of it came or went meanwhile. Throws where it cannot.
inline void CopyLive(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  const bool copied = Eventually([&] {
    std::filesystem::remove_all(to);
    std::filesystem::copy(from, to, std::filesystem::copy_options::recursive, error);
    return !error;
  });
  if (!copied) throw std::filesystem::filesystem_error("copy", from, to, error);
}

}  // namespace denoised

#endif  // DENOISED_TESTS_TEMPORARY_FOLDER_H_
