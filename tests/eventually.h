// Waits for what another thread does.
#ifndef DENOISED_TESTS_EVENTUALLY_H_
#define DENOISED_TESTS_EVENTUALLY_H_

#include <chrono>
#include <thread>

namespace denoised {

// Whether it comes true within a minute.
template <typename Condition>
bool Eventually(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace denoised

#endif  // DENOISED_TESTS_EVENTUALLY_H_
