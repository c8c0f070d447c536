// The one place where exceptions become values. Any thread.
#ifndef DENOISED_RUNTIME_CAUGHT_H_
#define DENOISED_RUNTIME_CAUGHT_H_

#include <functional>
#include <optional>

#include "backends/error.h"

namespace denoised {

// Runs `work`; whatever it throws comes back as an Error. An allocation that failed, by the C++
// library, LibTorch, oneDNN or CUDA, is RESOURCE_EXHAUSTED with reason MEMORY; what is not an Error
// otherwise is INTERNAL with the first line of its text (LibTorch adds a backtrace). Where CUDA
// said that nothing on this device can go well in this process any more (an illegal access, a
// failed assertion, a hardware error), the reason is DEVICE_LOST, else it is INTERNAL.
std::optional<Error> Caught(const std::function<void()>& work);

// Whether an Error of Caught says so.
bool IsDeviceLost(const Error& error);
// For those that let work go on without what failed: throws what says so, which is nobody's to
// swallow.
void RethrowDeviceLost(const std::optional<Error>& error);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_CAUGHT_H_
