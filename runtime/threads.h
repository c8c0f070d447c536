// Process-wide settings of LibTorch and the allocator, without their headers.
#ifndef DENOISED_RUNTIME_THREADS_H_
#define DENOISED_RUNTIME_THREADS_H_

#include <functional>
#include <string>

namespace denoised {

// Runs `work` on a thread that ends with it, with so many intra-op threads; throws what it throws.
// No other thread's number changes.
// For what is computed beside the engine's thread: OpenMP keeps the helpers of every thread that
// ever had some, and once they are more than the processors, it lets none of them spin from one
// parallel loop to the next. Each of a forward's loops would then wake its helpers from their
// sleep.
void RunOnPassingThread(int threads, const std::function<void()>& work);

// Marks this thread, and those that it starts from now on, as one that computes for long
// (SCHED_BATCH): when it wakes, the thread that woke it goes on. Who takes a request in has it
// answered before the work that it began takes the processor from it.
void ComputeInBackground();

// Freed memory stays with the process for the next allocation, up to 2 GiB at the end of the heap,
// instead of going back to the kernel: every step allocates the same large tensors, and getting
// them page by page anew costs up to a fifth of a sparse attention. Called first in main().
void KeepFreedMemory();

std::string LibTorchVersion();  // "2.11.0"

}  // namespace denoised

#endif  // DENOISED_RUNTIME_THREADS_H_
