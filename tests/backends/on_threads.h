// How the tests' kernels get threads.
#ifndef DENOISED_TESTS_BACKENDS_ON_THREADS_H_
#define DENOISED_TESTS_BACKENDS_ON_THREADS_H_

#include <algorithm>
#include <thread>
#include <vector>

#include "backends/kernels/workers.h"

namespace denoised::kernels {

// Workers on so many threads of their own.
inline RunWorkers OnThreads(int threads) {
  return [threads](int64_t tasks, const std::function<void(const Worker&)>& work) {
    const int64_t count = std::min<int64_t>(tasks, threads);
    std::vector<std::jthread> others;
    for (int64_t i = 1; i < count; ++i) others.emplace_back(work, Worker{i, count});
    work({0, count});
  };
}

}  // namespace denoised::kernels

#endif  // DENOISED_TESTS_BACKENDS_ON_THREADS_H_
