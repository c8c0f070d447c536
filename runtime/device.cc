#include "runtime/device.h"

#include <charconv>

#include "backends/error.h"

namespace denoised {
namespace {

at::Device CudaDevice(int index) {
  QueryCuda(index);  // throws with the reason where there is none
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

at::Device AutomaticDevice() {
  try {
    return CudaDevice(0);
  } catch (const Error&) {
    return at::kCPU;
  }
}

}  // namespace

at::Device ParseDevice(const std::string& name) {
  if (name == "auto") return AutomaticDevice();
  if (name == "cpu") return at::kCPU;
  if (name == "cuda") return CudaDevice(0);
  int index = -1;
  if (name.starts_with("cuda:")) {
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + 5, end, index);
    if (parsed.ec == std::errc() && parsed.ptr == end && index >= 0 && index < 64) {
      return CudaDevice(index);
    }
  }
  throw InvalidField("device", "must be auto, cpu or cuda:N, got \"" + name + "\"");
}

DeviceInfo QueryDevice(const at::Device& device) {
  return device.is_cpu() ? QueryCpu() : QueryCuda(device.index());
}

at::ScalarType ParseDType(const std::string& name, at::ScalarType stored,
                          const DeviceInfo& device) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name != "auto") {
    throw InvalidField("dtype", "must be auto, float32 or bfloat16, got \"" + name + "\"");
  }
  const bool fast = device.type == DeviceInfo::Type::kCuda || device.avx512_bf16 || device.amx_bf16;
  return fast && stored != at::kFloat ? at::kBFloat16 : at::kFloat;
}

}  // namespace denoised
