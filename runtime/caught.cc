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

// Errors after which every further call of CUDA in this process gives the same one: the words of
// cudaGetErrorString, and the driver's names.
bool SpeaksOfLostDevice(std::string_view text) {
  constexpr std::array<std::string_view, 20> kWords = {
      "an illegal memory access was encountered",
      "an illegal instruction was encountered",
      "misaligned address",
      "invalid program counter",
      "operation not supported on global/shared address space",
      "unspecified launch failure",
      "the launch timed out and was terminated",
      "device-side assert triggered",
      "hardware stack error",
      "uncorrectable ECC error encountered",
      "uncorrectable NVLink error",
      "a hardware error",
      "context is destroyed",
      "CUDA_ERROR_ILLEGAL_ADDRESS",
      "CUDA_ERROR_ILLEGAL_INSTRUCTION",
      "CUDA_ERROR_LAUNCH_FAILED",
      "CUDA_ERROR_LAUNCH_TIMEOUT",
      "CUDA_ERROR_ASSERT",
      "CUDA_ERROR_HARDWARE_STACK_ERROR",
      "CUDA_ERROR_ECC_UNCORRECTABLE",
  };
  if (text.find("CUDA") == std::string_view::npos) return false;
  return std::any_of(kWords.begin(), kWords.end(), [&](std::string_view words) {
    return text.find(words) != std::string_view::npos;
  });
}

constexpr char kDeviceLost[] = "DEVICE_LOST";

Error DeviceLost(const std::string& line) {
  return Error(StatusCode::kInternal, line, "", kDeviceLost);
}

Error Translated(const std::exception& error) {
  const std::string text = error.what();
  const std::string line = text.substr(0, text.find('\n'));
  if (SpeaksOfLostDevice(line)) return DeviceLost(line);
  if (SpeaksOfMemory(line)) return OutOfMemory(line);
  return Error(StatusCode::kInternal, line, "", "INTERNAL");
}

// Our own launches throw Errors with CUDA's words in them.
Error Own(const Error& error) {
  const bool lost = error.code() == StatusCode::kInternal && SpeaksOfLostDevice(error.what());
  return lost ? DeviceLost(error.what()) : error;
}

}  // namespace

std::optional<Error> Caught(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const Error& error) {
    return Own(error);
  } catch (const std::bad_alloc&) {
    return OutOfMemory("");
  } catch (const std::exception& error) {
    return Translated(error);
  } catch (...) {
    return Error(StatusCode::kInternal, "an exception of an unknown type", "", "INTERNAL");
  }
}

bool IsDeviceLost(const Error& error) { return error.reason() == kDeviceLost; }

void RethrowDeviceLost(const std::optional<Error>& error) {
  if (error && IsDeviceLost(*error)) throw *error;
}

}  // namespace denoised
