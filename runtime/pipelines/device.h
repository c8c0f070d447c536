// From the names that users type to devices and dtypes. Sees ATen: inside the runtime only.
#ifndef DENOISED_RUNTIME_PIPELINES_DEVICE_H_
#define DENOISED_RUNTIME_PIPELINES_DEVICE_H_

#include <ATen/ATen.h>

#include <string>

#include "backends/attention_spec.h"

namespace denoised {

// "cpu", "cuda", "cuda:N", or "auto": the first CUDA device that this build and machine have, else
// the CPU. INVALID_ARGUMENT (field "device") for another name; FAILED_PRECONDITION with the reason
// where the device is not there.
at::Device ParseDevice(const std::string& name);

DeviceInfo QueryDevice(const at::Device& device);

// "float32", "bfloat16", or "auto": bfloat16 where the device multiplies it and, of a CPU, its
// level allows that (backends/cpu_isa.h), whatever the files hold, else float32. INVALID_ARGUMENT
// (field "dtype") for another name.
at::ScalarType ParseDType(const std::string& name, const DeviceInfo& device);

// The decoder's: "auto" is float32 on a CPU, where frames in bfloat16 would gain little and show
// it, and bfloat16 on a CUDA device. INVALID_ARGUMENT (field "vae_dtype") for another name.
at::ScalarType ParseVaeDType(const std::string& name, const DeviceInfo& device);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_DEVICE_H_
