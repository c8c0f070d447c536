// Memory for kernels: aligned to a cache line, not initialised. Throws std::bad_alloc.
#ifndef DENOISED_BACKENDS_KERNELS_BUFFER_H_
#define DENOISED_BACKENDS_KERNELS_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace denoised::kernels {

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], FreeDeleter>;

// `count` elements.
template <class T>
Buffer<T> Allocate(int64_t count) {
  constexpr size_t kLine = 64;
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
  void* p = std::aligned_alloc(kLine, bytes);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

// For weights, which stay as long as their model. What is large lies in pages of its own, huge ones
// where the kernel gives them: first touched they cost a fifth of small ones, which would be half
// of a model's loading, and given up they are the system's again at once.
struct LastingDeleter {
  size_t mapped = 0;  // 0: from the heap
  void operator()(char* p) const;
};
using LastingBuffer = std::unique_ptr<char[], LastingDeleter>;
LastingBuffer AllocateLasting(int64_t bytes);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_BUFFER_H_
