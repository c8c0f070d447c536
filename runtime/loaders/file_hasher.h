// Digests of large files, taken beside the loading. Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_FILE_HASHER_H_
#define DENOISED_RUNTIME_LOADERS_FILE_HASHER_H_

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/loaders/file.h"

namespace denoised {

// SHA-256 of one file is one chain, so files are the unit of parallel work: threads take whole
// files in the order in which they came. What they read is what the loader reads at the same time,
// so that the disk gives each byte once. Add and Wait: one thread.
class FileHasher {
 public:
  // Starts no thread before there is a file; half the machine's at most.
  FileHasher() = default;
  ~FileHasher();  // gives up what is not done
  FileHasher(const FileHasher&) = delete;
  FileHasher& operator=(const FileHasher&) = delete;

  // `sha256` gets the hex digest; it outlives Wait or the hasher.
  void Add(std::shared_ptr<const ReadOnlyFile> file, std::string* sha256);
  // Until all are done; a stop point. Throws the first Error of a file; DATA_LOSS where one changed
  // meanwhile.
  void Wait();

 private:
  struct Work {
    std::shared_ptr<const ReadOnlyFile> file;
    std::string* sha256 = nullptr;
  };
  void Run();
  void Hash(const Work& work);
  bool Stopped();

  std::mutex mutex_;  // guards all below
  std::condition_variable wake_, idle_;
  std::deque<Work> queue_;
  size_t busy_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;  // Add's and the destructor's alone
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_FILE_HASHER_H_
