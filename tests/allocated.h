// Memory that a program has allocated, resident or not.
#ifndef DENOISED_TESTS_ALLOCATED_H_
#define DENOISED_TESTS_ALLOCATED_H_

#include <malloc.h>

#include <cstdint>

namespace denoised {

// Bytes that live. What is resident would not tell them from what was freed before.
inline int64_t AllocatedBytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

}  // namespace denoised

#endif  // DENOISED_TESTS_ALLOCATED_H_
