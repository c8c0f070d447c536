// How long this thread was in our own kernels. Every loop of theirs that threads share is given to
// RunOnIntraOpThreads, for which the linker puts a function that looks at the clock (--wrap, in
// CMakeLists.txt): nothing in the programs that are measured knows of it.
#ifndef DENOISED_TESTS_BENCH_KERNEL_CLOCK_H_
#define DENOISED_TESTS_BENCH_KERNEL_CLOCK_H_

namespace denoised {

// Of this thread's outermost loops, each from when the first thread begins on it to when the last
// one has done: waking them and seeing that they are done is no kernel's time. What runs on one
// thread outside of such a loop is none either.
double KernelSeconds();

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_KERNEL_CLOCK_H_
