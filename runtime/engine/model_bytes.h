// What models that come and go while others serve do to the count of memory. Any thread.
#ifndef DENOISED_RUNTIME_ENGINE_MODEL_BYTES_H_
#define DENOISED_RUNTIME_ENGINE_MODEL_BYTES_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace denoised {

// Bytes of models that came and went since the process was measured.
struct ModelBytes {
  std::atomic<int64_t> serving = 0;  // more than at the start; below 0 where it is less
  // Of those that are loaded beside what serves, or serve no longer and are still used.
  std::atomic<int64_t> passing = 0;
};

// Bytes that count as passing for as long as it lives.
class PassingBytes {
 public:
  explicit PassingBytes(std::shared_ptr<ModelBytes> counts) : counts_(std::move(counts)) {}
  ~PassingBytes() { Set(0); }
  PassingBytes(const PassingBytes&) = delete;
  PassingBytes& operator=(const PassingBytes&) = delete;
  void Set(int64_t bytes) {
    counts_->passing += bytes - bytes_;
    bytes_ = bytes;
  }

 private:
  const std::shared_ptr<ModelBytes> counts_;
  int64_t bytes_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_MODEL_BYTES_H_
