// Memory for kernels: aligned to a cache line, not initialised.
#ifndef DENOISED_BACKENDS_KERNELS_BUFFER_H_
#define DENOISED_BACKENDS_KERNELS_BUFFER_H_

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

// `count` elements. Throws std::bad_alloc.
template <class T>
Buffer<T> Allocate(int64_t count) {
  constexpr size_t kLine = 64;
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
  void* p = std::aligned_alloc(kLine, bytes);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_BUFFER_H_
