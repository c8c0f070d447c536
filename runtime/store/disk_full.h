// What is said where the disk of the state folder takes no more. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_DISK_FULL_H_
#define DENOISED_RUNTIME_STORE_DISK_FULL_H_

#include <chrono>
#include <string>

#include "backends/error.h"

namespace denoised {

// RESOURCE_EXHAUSTED, reason DISK. Somebody has to make room, which takes a while.
inline Error DiskFull(const std::string& what) {
  return Error(StatusCode::kResourceExhausted, what, "", "DISK")
      .RetryAfter(std::chrono::seconds(30));
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_DISK_FULL_H_
