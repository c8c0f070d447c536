#include "backends/aten_threads.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace denoised {

void RunOnAtenThreads(int64_t tasks, const std::function<void(const kernels::Worker&)>& work) {
  const int64_t workers = std::min<int64_t>(tasks, at::get_num_threads());
  // Where fewer threads come than were asked for, one has the parts of several.
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t) { work({begin, workers}); });
}

}  // namespace denoised
