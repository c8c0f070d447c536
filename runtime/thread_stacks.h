// Where every thread of this process stands, for a log. Torch-free; Linux and glibc.
#ifndef DENOISED_RUNTIME_THREAD_STACKS_H_
#define DENOISED_RUNTIME_THREAD_STACKS_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace denoised {

struct ThreadStack {
  pid_t thread = 0;
  std::string name;  // as top shows it
  // "library+0x1234 function", innermost first; none where the thread takes no signals.
  std::vector<std::string> frames;
};

// Asks each thread by a signal (SIGURG, which nobody else here uses) and waits a moment for its
// answer. A thread that sleeps in the kernel is woken for it, so that calls of the system may give
// EINTR. Any thread, several wait for each other; takes memory and may wait for a lock of the
// loader: not where nothing must wait.
std::vector<ThreadStack> StacksOfAllThreads();

}  // namespace denoised

#endif  // DENOISED_RUNTIME_THREAD_STACKS_H_
