#include "backends/cuda/flash3.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <dlfcn.h>

#include <algorithm>
#include <filesystem>

#include "backends/attention_call.h"
#include "backends/error.h"

namespace denoised {
namespace {

constexpr char kLibrary[] = DENOISED_FLASH3_PATH;

// Lazily: it names one symbol of Python's, which its forward never calls. It stays open, as its
// kernels are registered with the dispatcher.
std::optional<c10::OperatorHandle> Open() {
  if (!Flash3Installed() || dlopen(kLibrary, RTLD_LAZY | RTLD_LOCAL) == nullptr) {
    return std::nullopt;
  }
  return c10::Dispatcher::singleton().findSchema({"fa3_fwd::fwd", ""});
}

const std::optional<c10::OperatorHandle>& Operator() {
  static const std::optional<c10::OperatorHandle> handle = Open();
  return handle;
}

// One split: more would make the order of the sums depend on how much else is in the batch.
c10::IValue ArgumentOf(const c10::Argument& argument, const AttentionInputs& inputs) {
  const std::string& name = argument.name();
  if (name == "q") return HeadSizeInside(inputs.query);
  if (name == "k") return HeadSizeInside(inputs.key);
  if (name == "v") return HeadSizeInside(inputs.value);
  if (name == "softmax_scale") return SoftmaxScale(inputs);
  if (name == "is_causal") return inputs.causal;
  if (name == "num_splits") return int64_t{1};
  if (argument.default_value()) return *argument.default_value();
  throw Error(
      StatusCode::kInternal,
      "wanted fa3_fwd::fwd with defaults for all but q, k and v; got \"" + name + "\" without one");
}

}  // namespace

bool Flash3Installed() { return kLibrary[0] != '\0' && std::filesystem::exists(kLibrary); }

bool Flash3Loads() {
  if (!Operator().has_value()) return false;
  const auto& arguments = Operator()->schema().arguments();
  return std::all_of(arguments.begin(), arguments.end(), [](const c10::Argument& argument) {
    const std::string& name = argument.name();
    return argument.default_value().has_value() || name == "q" || name == "k" || name == "v";
  });
}

bool Flash3Serves(const AttentionSpec& spec, const DeviceInfo& device) {
  if (spec.dtype != DType::kBFloat16 || spec.head_size != 128 || spec.has_mask) return false;
  if (spec.causal && spec.q_len != spec.kv_len) return false;
  const bool hopper = device.type == DeviceInfo::Type::kCuda && device.major == 9;
  return hopper && device.minor == 0 && Flash3Loads();
}

bool Flash3Serves(const AttentionInputs& inputs) {
  const at::Tensor& q = inputs.query;
  if (q.scalar_type() != at::kBFloat16 || q.size(3) != 128 || inputs.mask.defined()) return false;
  const cudaDeviceProp* device = at::cuda::getDeviceProperties(q.device().index());
  return device->major == 9 && device->minor == 0 && Flash3Loads();
}

at::Tensor Flash3Forward(const AttentionInputs& inputs) {
  const c10::cuda::CUDAGuard guard(inputs.query.device());
  torch::jit::Stack stack;
  for (const c10::Argument& argument : Operator()->schema().arguments()) {
    stack.push_back(ArgumentOf(argument, inputs));
  }
  Operator()->callBoxed(stack);
  return stack.front().toTensor().contiguous();
}

}  // namespace denoised
