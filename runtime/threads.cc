#include "runtime/threads.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/headeronly/version.h>

#include <climits>
#include <exception>
#include <thread>

namespace denoised {

void SetIntraOpThreads(int threads) {
  // LibTorch's own default is one thread a physical core; it must still be initialised per thread.
  if (threads > 0) at::set_num_threads(threads);
  at::init_num_threads();
}

void RunOnPassingThread(int threads, const std::function<void()>& work) {
  const int own = IntraOpThreads();
  std::exception_ptr thrown;
  std::thread([&] {
    try {
      SetIntraOpThreads(threads);
      work();
    } catch (...) {
      thrown = std::current_exception();
    }
  }).join();
  SetIntraOpThreads(own);  // later threads begin with what was set last, wherever
  if (thrown) std::rethrow_exception(thrown);
}

int IntraOpThreads() { return at::get_num_threads(); }

void KeepFreedMemory() {
  mallopt(M_ARENA_MAX, 1);  // other arenas cannot hold large blocks without mapping them
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
}

std::string LibTorchVersion() { return TORCH_VERSION; }

}  // namespace denoised
