// Memory of one thread for as long as a piece of work takes, from a block that the thread keeps for
// the next piece. Threads that share a loop would else ask the one heap of the process for theirs
// at the same moment, and again to give it back, and put each other to sleep on its lock.
#ifndef DENOISED_BACKENDS_KERNELS_THREAD_BUFFER_H_
#define DENOISED_BACKENDS_KERNELS_THREAD_BUFFER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace denoised::kernels {

// `bytes` is a multiple of 64 and not 0, and so is the address. Throws std::bad_alloc. What was
// taken last is given back first, on the same thread.
void* TakeThreadMemory(size_t bytes);
void GiveThreadMemory(void* memory, size_t bytes);

// `count` elements, not initialised: a local variable, or a member of one.
template <class T>
class ThreadBuffer {
 public:
  explicit ThreadBuffer(int64_t count)
      : bytes_(Lines(static_cast<size_t>(count) * sizeof(T))),
        data_(static_cast<T*>(TakeThreadMemory(bytes_))) {}
  ~ThreadBuffer() { GiveThreadMemory(data_, bytes_); }
  ThreadBuffer(const ThreadBuffer&) = delete;
  ThreadBuffer& operator=(const ThreadBuffer&) = delete;

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static size_t Lines(size_t bytes) {
    constexpr size_t kLine = 64;
    return std::max(kLine, (bytes + kLine - 1) / kLine * kLine);
  }

  const size_t bytes_;
  T* const data_;
};

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_THREAD_BUFFER_H_
