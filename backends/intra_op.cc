#include "backends/intra_op.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "backends/kernels/team.h"

namespace denoised {
namespace {

std::atomic<int> g_threads = 0;  // as last set by any thread; 0: by none
thread_local int t_threads = 0;  // as set by this one

// For so long after a scope ends LibTorch keeps the threads, and our loops go on with OpenMP's:
// these spin for tens of milliseconds, and the next layer may be LibTorch's again.
constexpr std::chrono::milliseconds kLinger(100);
thread_local bool t_lingers = false;
thread_local std::chrono::steady_clock::time_point t_left;

bool LibTorchHasThreads() {
  if (t_lingers && std::chrono::steady_clock::now() - t_left > kLinger) {
    t_lingers = false;
    at::set_num_threads(1);
  }
  return at::get_num_threads() > 1;
}

}  // namespace

void SetIntraOpThreads(int threads) {
  if (threads <= 0) threads = g_threads;
  if (threads <= 0) {
    at::init_num_threads();  // LibTorch's default is one a physical core
    threads = at::get_num_threads();
  }
  g_threads = threads;
  SetOwnIntraOpThreads(threads);
}

void SetOwnIntraOpThreads(int threads) {
  t_threads = threads;
  t_lingers = false;
  at::set_num_threads(1);
}

int IntraOpThreads() {
  if (t_threads == 0) t_threads = g_threads;
  return t_threads > 0 ? t_threads : at::get_num_threads();
}

ScopedLibTorchThreads::ScopedLibTorchThreads() : before_(t_lingers ? 1 : at::get_num_threads()) {
  t_lingers = false;
  at::set_num_threads(IntraOpThreads());
}

ScopedLibTorchThreads::~ScopedLibTorchThreads() {
  if (before_ > 1) return;  // an outer scope's, or nobody ever set a number
  t_lingers = true;
  t_left = std::chrono::steady_clock::now();
}

void RunOnIntraOpThreads(int64_t tasks, const std::function<void(const kernels::Worker&)>& work) {
  const int64_t workers = std::min<int64_t>(tasks, IntraOpThreads());
  if (!LibTorchHasThreads()) return kernels::OwnTeam().Run(workers, work);
  // Where fewer threads come than were asked for, one has the parts of several.
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t) { work({begin, workers}); });
}

}  // namespace denoised
