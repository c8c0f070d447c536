// The header of a safetensors file, from its bytes: everything that safetensors.h says is refused
// is refused here. For safetensors.cc, which knows where the bytes come from. `what` is the file's
// name, for errors. Torch-free; no state.
#ifndef DENOISED_RUNTIME_LOADERS_SAFETENSORS_HEADER_H_
#define DENOISED_RUNTIME_LOADERS_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/error.h"
#include "runtime/loaders/safetensors.h"

namespace denoised {

// Of the number that says how long the header is.
inline constexpr uint64_t kSafetensorsPrefixBytes = 8;

// INVALID_ARGUMENT "what: rule: tensor".
Error BadSafetensors(const std::string& what, const std::string& rule,
                     const std::string& tensor = "");

// Bytes of a tensor of this dtype and shape; empty where the product overflows or leaves bits over.
std::optional<uint64_t> SafetensorsTensorBytes(std::string_view dtype,
                                               const std::vector<int64_t>& shape);

// Throws where a file of this size has no room for the prefix.
void CheckSafetensorsPrefix(uint64_t file_size, const std::string& what);

// What the prefix says, checked against the limits and the file's size, which is 8 at least.
uint64_t SafetensorsHeaderSize(const char* prefix, uint64_t file_size, const std::string& what,
                               const SafetensorsLimits& limits);

// Reads and checks the JSON `text` that follows the prefix.
SafetensorsHeader ParseSafetensorsJson(std::string text, uint64_t file_size,
                                       const std::string& what, const SafetensorsLimits& limits);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_SAFETENSORS_HEADER_H_
