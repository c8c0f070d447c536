#include "runtime/threads.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

namespace denoised {

void SetIntraOpThreads(int threads) {
  // LibTorch's own default is one thread a physical core; it must still be initialised per thread.
  if (threads > 0) at::set_num_threads(threads);
  at::init_num_threads();
}

std::string LibTorchVersion() { return TORCH_VERSION; }

}  // namespace denoised
