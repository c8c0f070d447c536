#include "runtime/loaders/file_hasher.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "backends/stop_point.h"
#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

constexpr uint64_t kChunkBytes = 1 << 20;
constexpr size_t kMaxThreads = 8;
// How often who waits asks whether to go on.
constexpr std::chrono::milliseconds kLook(50);

size_t ThreadLimit() {
  return std::clamp<size_t>(std::thread::hardware_concurrency() / 2, 1, kMaxThreads);
}

}  // namespace

FileHasher::~FileHasher() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void FileHasher::Add(std::shared_ptr<const ReadOnlyFile> file, std::string* sha256) {
  bool more = false;
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back({std::move(file), sha256});
    more = queue_.size() + busy_ > threads_.size() && threads_.size() < ThreadLimit();
  }
  wake_.notify_one();
  if (more) threads_.emplace_back([this] { Run(); });
}

void FileHasher::Wait() {
  std::unique_lock lock(mutex_);
  while (!idle_.wait_for(lock, kLook, [this] { return queue_.empty() && busy_ == 0; })) {
    StopPoint();
  }
  if (failure_) std::rethrow_exception(failure_);
}

void FileHasher::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const Work work = std::move(queue_.front());
    queue_.pop_front();
    ++busy_;
    lock.unlock();
    std::exception_ptr failure;
    try {
      Hash(work);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure && !failure_) failure_ = failure;
    --busy_;
    idle_.notify_all();
  }
}

void FileHasher::Hash(const Work& work) {
  const ReadOnlyFile& file = *work.file;
  std::string buffer(std::min(kChunkBytes, file.size()), '\0');
  Sha256 hash;
  for (uint64_t done = 0; done < file.size() && !Stopped(); done += buffer.size()) {
    buffer.resize(std::min(kChunkBytes, file.size() - done));
    file.ReadAt(done, buffer.data(), buffer.size());
    hash.Update(buffer);
  }
  file.CheckUnchanged();
  *work.sha256 = ToHex(hash.Finish());
}

bool FileHasher::Stopped() {
  const std::lock_guard lock(mutex_);
  return stop_;
}

}  // namespace denoised
