#include "runtime/caught.h"

#include <algorithm>
#include <array>
#include <new>
#include <string>
#include <string_view>

namespace denoised {
namespace {

Error OutOfMemory(const std::string& detail) {
  return Error(StatusCode::kResourceExhausted,
               "out of memory" + (detail.empty() ? "" : ": " + detail), "", "MEMORY");
}

// LibTorch has a type for a CUDA device's failed allocations alone; those of the host, of oneDNN
// and of the CUDA libraries are known by their words only.
bool SpeaksOfMemory(std::string_view text) {
  constexpr std::array<std::string_view, 8> kWords = {
      "can't allocate memory",  // DefaultCPUAllocator
      "not enough memory",      // the same on other systems
      "out of memory",          // CUDA
      "CUBLAS_STATUS_ALLOC_FAILED",
      "CUDNN_STATUS_ALLOC_FAILED",
      "cudaErrorMemoryAllocation",
      "could not create a memory",  // oneDNN
      "Cannot allocate memory",     // the system's own
  };
  return std::any_of(kWords.begin(), kWords.end(), [&](std::string_view words) {
    return text.find(words) != std::string_view::npos;
  });
}

Error Translated(const std::exception& error) {
  const std::string text = error.what();
  const std::string line = text.substr(0, text.find('\n'));
  if (SpeaksOfMemory(line)) return OutOfMemory(line);
  return Error(StatusCode::kInternal, line, "", "INTERNAL");
}

}  // namespace

std::optional<Error> Caught(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return OutOfMemory("");
  } catch (const std::exception& error) {
    return Translated(error);
  } catch (...) {
    return Error(StatusCode::kInternal, "an exception of an unknown type", "", "INTERNAL");
  }
}

}  // namespace denoised
