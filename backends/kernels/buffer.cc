#include "backends/kernels/buffer.h"

#include <sys/mman.h>

namespace denoised::kernels {
namespace {

constexpr int64_t kHugePage = 2 << 20;

}  // namespace

void LastingDeleter::operator()(char* p) const {
  if (mapped > 0) {
    munmap(p, mapped);
  } else {
    std::free(p);
  }
}

LastingBuffer AllocateLasting(int64_t bytes) {
  if (bytes < kHugePage) return {Allocate<char>(bytes).release(), {}};
  const auto size = static_cast<size_t>(bytes);
  void* const p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  madvise(p, size, MADV_HUGEPAGE);  // where it may not, pages are small
  return {static_cast<char*>(p), {size}};
}

}  // namespace denoised::kernels
