// "cuda:0" in host memory, for LibTorch: tensors that say they are of the device, and whatever is
// done to them is done by LibTorch's CPU kernels on the same memory. Fresh memory is NaN.
//
// An operation that mixes devices ends with LibTorch's error, unless the host's tensor is a number.
// That memory of the device is not the host's is not shown otherwise.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <map>

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = *at::cuda::getDeviceProperties(device);
  return cudaSuccess;
}

const cudaDeviceProp* at::cuda::getDeviceProperties(int) {
  static const cudaDeviceProp properties{"emulated", 9, 0};
  return &properties;
}

namespace denoised::emulated {
namespace {

// Of this thread; see CUDAGraph.h.
thread_local bool capturing = false;

void RefuseInCapture(const char* what) {
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing: ", what);
}

using Stack = torch::jit::Stack;

const c10::Device kDevice(c10::kCUDA, 0);

// A storage of one device over the memory of one of the other: what keeps that alive.
struct Other {
  c10::Storage storage;
};

void Forget(void* other) { delete static_cast<Other*>(other); }

c10::Storage StorageOn(c10::Device device, const c10::Storage& storage) {
  if (storage.data_ptr().get_deleter() == &Forget) {
    return static_cast<Other*>(storage.data_ptr().get_context())->storage;
  }
  void* data = storage.data_ptr().get();
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(),
                      c10::DataPtr(data, new Other{storage}, &Forget, device),
                      /*allocator=*/nullptr, /*resizable=*/false);
}

// The same numbers in the same memory, as a tensor of the other device.
at::Tensor On(c10::Device device, const at::Tensor& x) {
  using c10::BackendComponent;
  const bool there = device.is_cuda();
  const auto from = there ? BackendComponent::CPUBit : BackendComponent::CUDABit;
  const auto to = there ? BackendComponent::CUDABit : BackendComponent::CPUBit;
  // A view, which is an inference tensor where the other one is.
  at::Tensor other = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, StorageOn(device, x.storage()),
      x.key_set().remove_backend(from) | c10::DispatchKeySet(to), x.dtype());
  c10::TensorImpl* impl = other.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(x.sizes(), x.strides(), x.storage_offset());
  if (x.is_conj()) impl->_set_conj(true);
  if (x.is_neg()) impl->_set_neg(true);
  return other;
}

// What of a call's tensors were of the device, by the tensor that stood in for it.
using Originals = std::map<c10::TensorImpl*, at::Tensor>;

at::Tensor Lend(const at::Tensor& x, Originals* originals) {
  if (!x.defined() || !x.is_cuda()) return x;
  at::Tensor lent = On(c10::kCPU, x);
  originals->emplace(lent.unsafeGetTensorImpl(), x);
  return lent;
}

c10::IValue Lend(const c10::IValue& value, Originals* originals) {
  if (value.isTensor()) return Lend(value.toTensor(), originals);
  if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(c10::kCPU);
  if (value.isTensorList()) {
    c10::List<at::Tensor> lent;
    for (const at::Tensor& x : value.toTensorVector()) lent.push_back(Lend(x, originals));
    return lent;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> lent;
    for (const std::optional<at::Tensor>& x : value.toOptionalTensorVector()) {
      lent.push_back(x.has_value() ? std::optional(Lend(*x, originals)) : std::nullopt);
    }
    return lent;
  }
  return value;
}

// An operation may have given a lent tensor other memory, or another shape.
void Follow(const at::Tensor& lent, const at::Tensor& original) {
  c10::StorageImpl* storage = original.storage().unsafeGetStorageImpl();
  if (lent.storage().data() != storage->data()) {
    storage->set_data_ptr_noswap(
        c10::DataPtr(lent.storage().mutable_data(), new Other{lent.storage()}, &Forget, kDevice));
    storage->set_nbytes(lent.storage().nbytes());
  }
  if (original.sizes() == lent.sizes() && original.strides() == lent.strides()) return;
  original.unsafeGetTensorImpl()->set_sizes_and_strides(lent.sizes(), lent.strides(),
                                                        lent.storage_offset());
}

// A result that is one of the lent tensors is what it stood for.
at::Tensor Return(const at::Tensor& x, const Originals& originals) {
  if (!x.defined()) return x;
  const auto found = originals.find(x.unsafeGetTensorImpl());
  if (found == originals.end()) {
    TORCH_CHECK(x.is_cpu(),
                "emulated CUDA: an operation of the host's has made a tensor elsewhere");
    return On(kDevice, x);
  }
  Follow(x, found->second);
  return found->second;
}

c10::IValue Return(const c10::IValue& value, const Originals& originals) {
  if (value.isTensor()) return Return(value.toTensor(), originals);
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> returned;
  for (const at::Tensor& x : value.toTensorVector()) returned.push_back(Return(x, originals));
  return returned;
}

void CheckDevice(const c10::OperatorHandle& op, const at::Tensor& x) {
  TORCH_CHECK(!x.defined() || x.is_cuda() || x.dim() == 0,
              "Expected all tensors to be on the same device; ", op.schema().name(),
              " got one of the host's");
}

void CheckDevices(const c10::OperatorHandle& op, const c10::ArrayRef<c10::IValue>& arguments) {
  for (const c10::IValue& argument : arguments) {
    if (argument.isTensor()) CheckDevice(op, argument.toTensor());
    if (!argument.isTensorList()) continue;
    for (const at::Tensor& x : argument.toTensorVector()) CheckDevice(op, x);
  }
}

// Of these CUDA waits for the size of the result.
bool HasSizesFromNumbers(const std::string& name) {
  return name == "aten::nonzero" || name == "aten::masked_select" || name == "aten::_unique2" ||
         name == "aten::repeat_interleave";
}

bool IsFresh(const std::string& name) {
  return name == "aten::empty" || name == "aten::empty_strided";
}

void FillWithNan(const at::Tensor& x) {
  const c10::Storage& storage = x.storage();
  if (storage.nbytes() > 0) std::memset(storage.mutable_data(), 0xff, storage.nbytes());
}

void RunOnHost(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  const auto arguments = torch::jit::last(*stack, count);
  if (op.schema().name() != "aten::index") CheckDevices(op, arguments);
  if (HasSizesFromNumbers(op.schema().name())) RefuseInCapture("a size for the host");
  Originals originals;
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    (*stack)[i] = Lend((*stack)[i], &originals);
  }
  op.callBoxed(stack);
  const size_t results = op.schema().returns().size();
  for (const c10::IValue& result : torch::jit::last(*stack, results)) {
    if (!result.isTensor() && !result.isTensorList()) RefuseInCapture("a number for the host");
  }
  for (size_t i = stack->size() - results; i < stack->size(); ++i) {
    (*stack)[i] = Return((*stack)[i], originals);
  }
  if (IsFresh(op.schema().name())) FillWithNan(stack->back().toTensor());
}

// Between the devices and on this one.
at::Tensor& Copy(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.is_cuda() != source.is_cuda()) RefuseInCapture("a copy to or from the host");
  at::Tensor to = self.is_cuda() ? On(c10::kCPU, self) : self;
  to.copy_(source.is_cuda() ? On(c10::kCPU, source) : source, non_blocking);
  return self;
}

// FlashAttention-2 over sequences that lie one after the other: [tokens, H, D].
void FlashAttention(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  const auto arguments = torch::jit::last(*stack, count);
  const auto host = [&](int i) { return On(c10::kCPU, arguments[i].toTensor()); };
  const at::Tensor q = host(0), k = host(1), v = host(2), q_begins = host(3), k_begins = host(4);
  const bool causal = arguments[8].toBool();
  const std::optional<double> scale = arguments[10].toOptional<double>();
  at::Tensor out = at::empty_like(q);
  for (int64_t i = 0; i + 1 < q_begins.size(0); ++i) {
    const auto of = [i](const at::Tensor& x, const at::Tensor& begins) {  // [1, H, tokens, D]
      const int64_t begin = begins[i].item<int64_t>(), end = begins[i + 1].item<int64_t>();
      return x.slice(0, begin, end).transpose(0, 1).unsqueeze(0);
    };
    of(out, q_begins)
        .copy_(at::scaled_dot_product_attention(
            of(q, q_begins).to(at::kFloat), of(k, k_begins).to(at::kFloat),
            of(v, k_begins).to(at::kFloat), {}, 0.0, causal, scale));
  }
  torch::jit::drop(*stack, count);
  torch::jit::push(*stack, On(kDevice, out));
  for (int i = 0; i < 4; ++i) torch::jit::push(*stack, at::Tensor());
}

// By the formula and row by row: what LibTorch has for CPUs loses what is not finite, and its
// products of a batch have other bits than those of a row. Masks are of four axes.
at::Tensor Attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const std::optional<at::Tensor>& mask, double dropout, bool causal,
                     std::optional<double> scale, bool grouped) {
  at::Tensor bias = mask.value_or(at::Tensor());
  if (bias.defined() && bias.scalar_type() == at::kBool) {
    bias = at::zeros(bias.sizes(), query.options()).masked_fill_(bias.logical_not(), -INFINITY);
  }
  std::vector<at::Tensor> rows;
  for (int64_t row = 0; row < query.size(0); ++row) {
    const auto of = [row](const at::Tensor& x) { return x.narrow(0, x.size(0) > 1 ? row : 0, 1); };
    rows.push_back(std::get<0>(at::_scaled_dot_product_attention_math(
        of(query), of(key), of(value), bias.defined() ? std::optional(of(bias)) : std::nullopt,
        dropout, causal, {}, scale, grouped)));
  }
  return at::cat(rows);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&RunOnHost>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", Copy);
  library.impl("_flash_attention_forward",
               torch::CppFunction::makeFromBoxedFunction<&FlashAttention>());
  // These would choose a library of CUDA's.
  library.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&RunOnHost>());
  library.impl("scaled_dot_product_attention", Attention);
}

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::kCUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  // A kernel has run when it is launched.
  void synchronizeDevice(c10::DeviceIndex) const override { RefuseInCapture("a wait"); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

}  // namespace
}  // namespace denoised::emulated

void at::cuda::CUDAGraph::capture_begin() { denoised::emulated::capturing = true; }
void at::cuda::CUDAGraph::capture_end() { denoised::emulated::capturing = false; }
at::cuda::CUDAGraph::~CUDAGraph() { capture_end(); }

void c10::cuda::CUDAStream::synchronize() const { denoised::emulated::RefuseInCapture("a wait"); }
