// LibTorch's intra-op threads for the kernels, which know nothing of them.
#ifndef DENOISED_BACKENDS_ATEN_THREADS_H_
#define DENOISED_BACKENDS_ATEN_THREADS_H_

#include <cstdint>
#include <functional>

#include "backends/kernels/workers.h"

namespace denoised {

// A kernels::RunWorkers on up to min(tasks, intra-op threads) threads.
void RunOnAtenThreads(int64_t tasks, const std::function<void(const kernels::Worker&)>& work);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ATEN_THREADS_H_
