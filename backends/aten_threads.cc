#include "backends/aten_threads.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace denoised {

void RunOnAtenThreads(int64_t tasks, const std::function<void()>& worker) {
  const int64_t workers = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) { worker(); });
}

}  // namespace denoised
