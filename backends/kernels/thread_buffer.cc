#include "backends/kernels/thread_buffer.h"

#include "backends/kernels/buffer.h"

namespace denoised::kernels {
namespace {

// Most that a thread keeps; what does not fit is the heap's. Nothing where every use of memory is
// watched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kMostKept = 0;
#else
constexpr size_t kMostKept = size_t{4} << 20;
#endif

class ThreadMemory {
 public:
  void* Take(size_t bytes) {
    if (taken_ == 0) Grow();
    void* const memory =
        bytes <= size_ - used_ ? block_.get() + used_ : Allocate<char>(bytes).release();
    used_ += IsOurs(memory) ? bytes : 0;
    taken_ += bytes;
    most_taken_ = std::max(most_taken_, taken_);
    return memory;
  }

  void Give(void* memory, size_t bytes) {
    taken_ -= bytes;
    if (IsOurs(memory)) {
      used_ -= bytes;
    } else {
      std::free(memory);
    }
  }

 private:
  // To what was ever taken at once, while nothing is.
  void Grow() {
    const size_t wanted = std::min(most_taken_, kMostKept);
    if (wanted <= size_) return;
    size_ = 0;
    block_.reset();
    block_ = Allocate<char>(static_cast<int64_t>(wanted));
    size_ = wanted;
  }
  bool IsOurs(const void* memory) const {
    return size_ > 0 && memory >= block_.get() && memory < block_.get() + size_;
  }

  Buffer<char> block_;
  size_t size_ = 0, used_ = 0;  // of the block
  size_t taken_ = 0, most_taken_ = 0;
};

thread_local ThreadMemory memory_of_thread;

}  // namespace

void* TakeThreadMemory(size_t bytes) { return memory_of_thread.Take(bytes); }
void GiveThreadMemory(void* memory, size_t bytes) { memory_of_thread.Give(memory, bytes); }

}  // namespace denoised::kernels
