#include "runtime/threads.h"

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <torch/headeronly/version.h>

#include <climits>
#include <exception>
#include <thread>

#include "backends/intra_op.h"

namespace denoised {

void RunOnPassingThread(int threads, const std::function<void()>& work) {
  std::exception_ptr thrown;
  std::thread([&] {
    try {
      SetOwnIntraOpThreads(threads);
      const ScopedLibTorchThreads for_conversions;
      work();
    } catch (...) {
      thrown = std::current_exception();
    }
  }).join();
  if (thrown) std::rethrow_exception(thrown);
}

void ComputeInBackground() {
  const sched_param none{};
  pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);  // where it may not, it is as it was
}

void KeepFreedMemory() {
  mallopt(M_ARENA_MAX, 1);  // other arenas cannot hold large blocks without mapping them
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
}

std::string LibTorchVersion() { return TORCH_VERSION; }

}  // namespace denoised
