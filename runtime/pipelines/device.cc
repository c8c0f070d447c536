#include "runtime/pipelines/device.h"

#include <charconv>

#include "backends/error.h"

namespace denoised {
namespace {

at::Device CudaDevice(int index) {
  QueryCuda(index);  // throws with the reason where there is none
  // LibTorch would let cuDNN convolve float32 with ten bits of its mantissa.
  at::globalContext().setAllowTF32CuDNN(false);
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

at::Device AutomaticDevice() {
  try {
    return CudaDevice(0);
  } catch (const Error&) {
    return at::kCPU;
  }
}

bool MultipliesBFloat16(const DeviceInfo& device) {
  if (device.type == DeviceInfo::Type::kCuda) return device.major >= 8;
  return device.avx512_bf16 || device.amx_bf16;
}

at::ScalarType NamedDType(const std::string& field, const std::string& name, bool auto_is_half) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "auto") return auto_is_half ? at::kBFloat16 : at::kFloat;
  throw InvalidField(field, "must be auto, float32 or bfloat16, got \"" + name + "\"");
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

at::ScalarType ParseDType(const std::string& name, const DeviceInfo& device) {
  return NamedDType("dtype", name, MultipliesBFloat16(device));
}

at::ScalarType ParseVaeDType(const std::string& name, const DeviceInfo& device) {
  const bool cuda = device.type == DeviceInfo::Type::kCuda;
  return NamedDType("vae_dtype", name, cuda && MultipliesBFloat16(device));
}

}  // namespace denoised
