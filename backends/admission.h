// Whether code that no device has run yet may serve layers.
//
// A kernel for instructions or devices that nobody had at hand compiles and links, which proves
// little. Until its results are recorded in tests/bench/results/ a backend refuses such a spec with
// a sentence, unless it was made with Admission::kUnmeasured (BackendRegistry::WithUnmeasured, the
// flag --admit_unmeasured). Torch-free.
#ifndef DENOISED_BACKENDS_ADMISSION_H_
#define DENOISED_BACKENDS_ADMISSION_H_

#include <cstdint>
#include <optional>
#include <string>

namespace denoised {

enum class Admission : uint8_t { kMeasured, kUnmeasured };

// For Supports: empty where admitted, else the refusal of `what` ("its CUDA kernel").
std::optional<std::string> RefuseUnmeasured(Admission admission, const std::string& what);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ADMISSION_H_
