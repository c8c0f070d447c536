// One thread block a (head, block of tokens), one thread an element: its sum runs over the tokens
// in their order, so that rounding, and with it every mask, is the host's.
#include "backends/cuda/block_means_cuda.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/widen.cuh"

namespace denoised::cuda {
namespace {

template <class T>
__global__ void BlockMeans(const BlockMeansArgs args) {
  const int64_t head = blockIdx.x / args.blocks, block = blockIdx.x % args.blocks;
  const T* rows = static_cast<const T*>(args.view.data) +
                  head / args.heads * args.view.batch_stride +
                  head % args.heads * args.view.head_stride;
  const int first = args.begin[block], last = args.begin[block + 1];
  for (int d = static_cast<int>(threadIdx.x); d < args.head_size;
       d += static_cast<int>(blockDim.x)) {
    float sum = 0;
#pragma unroll 8
    for (int i = first; i < last; ++i) {
      sum = __fadd_rn(sum, Widen(rows[__ldg(args.order + i) * args.view.token_stride + d]));
    }
    args.means[(head * args.blocks + block) * args.head_size + d] =
        __fdiv_rn(sum, static_cast<float>(last - first));
  }
}

}  // namespace

cudaError_t LaunchBlockMeans(const BlockMeansArgs& args, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(args.batch * args.heads * args.blocks);
  const unsigned threads = static_cast<unsigned>((args.head_size + 31) / 32 * 32);
  switch (args.element) {
    case PooledElement::kFloat32:
      return LaunchKernel(BlockMeans<float>, grid, threads, 0, stream, args);
    case PooledElement::kBFloat16:
      return LaunchKernel(BlockMeans<__nv_bfloat16>, grid, threads, 0, stream, args);
    case PooledElement::kFloat16:
      return LaunchKernel(BlockMeans<__half>, grid, threads, 0, stream, args);
  }
  return cudaErrorInvalidValue;
}

}  // namespace denoised::cuda
