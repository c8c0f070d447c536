// How many threads work on one call, and loops of our own over them. Torch-free.
//
// Loops of ours have a team that ends with its thread (kernels/team.h), LibTorch's operations have
// OpenMP's threads, and only one of the two has threads at a time: OpenMP's spin for milliseconds
// after each operation, which takes a processor from the other's. As a rule it is ours: what few
// operations of LibTorch are left between our kernels run on the calling thread alone.
#ifndef DENOISED_BACKENDS_INTRA_OP_H_
#define DENOISED_BACKENDS_INTRA_OP_H_

#include <algorithm>
#include <cstdint>
#include <functional>

#include "backends/kernels/workers.h"

namespace denoised {

// Threads of this thread's calls from now on, the caller among them, and what threads that come
// later begin with; 0 = what was last set by any, at first one a physical core. Before the first
// call LibTorch has threads of its own.
void SetIntraOpThreads(int threads);
// Likewise of this thread alone: others begin with what they would have begun with.
void SetOwnIntraOpThreads(int threads);

// Of this thread's calls.
int IntraOpThreads();

// While one lives, LibTorch's operations on this thread have the threads, and our loops run on
// OpenMP's as well: for numerics and backends that are LibTorch's own. They nest.
class ScopedLibTorchThreads {
 public:
  ScopedLibTorchThreads();
  ~ScopedLibTorchThreads();
  ScopedLibTorchThreads(const ScopedLibTorchThreads&) = delete;
  ScopedLibTorchThreads& operator=(const ScopedLibTorchThreads&) = delete;

 private:
  const int before_;
};

// A kernels::RunWorkers on up to min(tasks, IntraOpThreads()) threads. `work` makes no calls into
// LibTorch that LibTorch would share out.
void RunOnIntraOpThreads(int64_t tasks, const std::function<void(const kernels::Worker&)>& work);

// Runs run(begin, end) over parts of [0, count) of about `grain` and more, on those threads. What a
// part gives must not depend on where it begins.
template <class Run>
void ParallelFor(int64_t count, int64_t grain, const Run& run) {
  constexpr int64_t kMostParts = 64;  // several a thread: who comes late leaves them to the others
  const int64_t parts = std::min(kMostParts, (count + grain - 1) / grain);
  if (parts <= 1) {
    if (count > 0) run(int64_t{0}, count);
    return;
  }
  kernels::TaskShares shares(parts);
  RunOnIntraOpThreads(parts, [&](const kernels::Worker& worker) {
    for (int64_t i; (i = shares.Take(worker)) >= 0;) {
      run(i * count / parts, (i + 1) * count / parts);
    }
  });
}

}  // namespace denoised

#endif  // DENOISED_BACKENDS_INTRA_OP_H_
