// LibTorch's process-wide settings, without its headers.
#ifndef DENOISED_RUNTIME_THREADS_H_
#define DENOISED_RUNTIME_THREADS_H_

#include <string>

namespace denoised {

// Intra-op threads of every LibTorch call from now on; 0 = one a physical core. Called before the
// first computation and by the engine thread when it starts.
void SetIntraOpThreads(int threads);

std::string LibTorchVersion();  // "2.11.0"

}  // namespace denoised

#endif  // DENOISED_RUNTIME_THREADS_H_
