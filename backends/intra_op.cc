#include "backends/intra_op.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "backends/kernels/team.h"

namespace denoised {
namespace {

std::atomic<int> g_threads = 0;  // as last set by any thread; 0: by none
thread_local int t_threads = 0;  // as set by this one

}  // namespace

void SetIntraOpThreads(int threads) {
  if (threads <= 0) threads = g_threads;
  if (threads <= 0) {
    at::init_num_threads();  // LibTorch's default is one a physical core
    threads = at::get_num_threads();
  }
  g_threads = t_threads = threads;
  at::set_num_threads(1);
}

int IntraOpThreads() {
  if (t_threads == 0) t_threads = g_threads;
  return t_threads > 0 ? t_threads : at::get_num_threads();
}

ScopedLibTorchThreads::ScopedLibTorchThreads() : before_(at::get_num_threads()) {
  at::set_num_threads(IntraOpThreads());
}

ScopedLibTorchThreads::~ScopedLibTorchThreads() { at::set_num_threads(before_); }

void RunOnIntraOpThreads(int64_t tasks, const std::function<void(const kernels::Worker&)>& work) {
  const int64_t workers = std::min<int64_t>(tasks, IntraOpThreads());
  if (at::get_num_threads() == 1) return kernels::OwnTeam().Run(workers, work);
  // Where fewer threads come than were asked for, one has the parts of several.
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t) { work({begin, workers}); });
}

}  // namespace denoised
