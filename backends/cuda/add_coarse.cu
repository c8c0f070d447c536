// Bound by memory: a thread has a pair of neighbours, so that a warp reads and writes whole lines.
#include "backends/cuda/add_coarse_cuda.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/widen.cuh"

namespace denoised::cuda {
namespace {

constexpr int kThreads = 256;

// Of a row of a head: `kWidth` neighbours a thread.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) AddCoarse(const AddCoarseArgs args) {
  struct alignas(kWidth * sizeof(T)) Some {
    T x[kWidth];
  };
  const int64_t some = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int parts = args.head_size / kWidth;
  const int64_t row = some / parts;  // (batch, token, head)
  if (row >= int64_t{args.batch} * args.tokens * args.heads) return;
  const int d = static_cast<int>(some % parts) * kWidth;
  const int64_t token = row / args.heads;
  const int64_t head = token / args.tokens * args.heads + row % args.heads;
  const int block = __ldg(args.block_of_token + token % args.tokens);
  const float* coarse = args.coarse + (head * args.blocks + block) * args.head_size + d;
  const Some fine = static_cast<const Some*>(args.fine)[some];
  Some gate, out;
  if (args.gate != nullptr) gate = static_cast<const Some*>(args.gate)[some];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float factor = args.gate != nullptr ? Widen(gate.x[i]) : 1.0f;
    out.x[i] = Narrow<T>(__fadd_rn(Widen(fine.x[i]), __fmul_rn(coarse[i], factor)));
  }
  static_cast<Some*>(args.out)[some] = out;
}

template <class T>
cudaError_t Launch(const AddCoarseArgs& args, cudaStream_t stream) {
  const int width = args.head_size % 4 == 0 ? 4 : 1;
  const int64_t threads = int64_t{args.batch} * args.tokens * args.heads * args.head_size / width;
  const unsigned grid = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  const auto kernel = width == 4 ? AddCoarse<T, 4> : AddCoarse<T, 1>;
  return LaunchKernel(kernel, grid, kThreads, 0, stream, args);
}

}  // namespace

cudaError_t LaunchAddCoarse(const AddCoarseArgs& args, cudaStream_t stream) {
  switch (args.element) {
    case PooledElement::kFloat32:
      return Launch<float>(args, stream);
    case PooledElement::kBFloat16:
      return Launch<__nv_bfloat16>(args, stream);
    case PooledElement::kFloat16:
      return Launch<__half>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace denoised::cuda
