// From the names that users type to devices and dtypes. Sees ATen: inside the runtime only.
#ifndef DENOISED_RUNTIME_DEVICE_H_
#define DENOISED_RUNTIME_DEVICE_H_

#include <ATen/ATen.h>

#include <string>

#include "backends/attention_spec.h"

namespace denoised {

// "cpu", "cuda", "cuda:N", or "auto": the first CUDA device that this build and machine have, else
// the CPU. INVALID_ARGUMENT (field "device") for another name; FAILED_PRECONDITION with the reason
// where the device is not there.
at::Device ParseDevice(const std::string& name);

DeviceInfo QueryDevice(const at::Device& device);

// "float32", "bfloat16", or "auto": `stored`, the dtype of the weights file, as Transformers'
// torch_dtype="auto" takes it; float32 instead of bfloat16 or float16 on a CPU without fast
// bfloat16. INVALID_ARGUMENT (field "dtype") for another name.
at::ScalarType ParseDType(const std::string& name, at::ScalarType stored, const DeviceInfo& device);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_DEVICE_H_
