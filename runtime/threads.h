// Process-wide settings of LibTorch and the allocator, without their headers.
#ifndef DENOISED_RUNTIME_THREADS_H_
#define DENOISED_RUNTIME_THREADS_H_

#include <string>

namespace denoised {

// Intra-op threads of every LibTorch call from now on; 0 = one a physical core. Called before the
// first computation and by the engine thread when it starts.
void SetIntraOpThreads(int threads);

// Of this thread's LibTorch calls.
int IntraOpThreads();

// Freed memory stays with the process for the next allocation, up to 2 GiB at the end of the heap,
// instead of going back to the kernel: every step allocates the same large tensors, and getting
// them page by page anew costs up to a fifth of a sparse attention. Called first in main().
void KeepFreedMemory();

std::string LibTorchVersion();  // "2.11.0"

}  // namespace denoised

#endif  // DENOISED_RUNTIME_THREADS_H_
