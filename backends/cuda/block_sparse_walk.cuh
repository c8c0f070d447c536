// What both block-sparse kernels do alike: which (batch, head, query block) a thread block has, and
// which key blocks that attends.
#ifndef DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_WALK_CUH_
#define DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_WALK_CUH_

#include <limits>

#include "backends/cuda/block_sparse_cuda.h"

namespace denoised::cuda {

// The work of one thread block. Query blocks of one head are neighbours in the grid, so that its
// keys and values stay in the L2 cache.
struct Walk {
  int32_t batch, head, query_block;
  int64_t begin, count;  // entries of the list

  __device__ explicit Walk(const BlockSparseArgs& args) {
    const int64_t blocks = args.plan.query_blocks, row_of_heads = blockIdx.x / blocks;
    query_block = static_cast<int32_t>(blockIdx.x % blocks);
    batch = static_cast<int32_t>(row_of_heads / args.heads);
    head = static_cast<int32_t>(row_of_heads % args.heads);
    begin = 0;
    count = args.plan.key_blocks;
    if (args.plan.lists > 0) {
      const int64_t* row =
          args.plan.row_begin + row_of_heads % args.plan.lists * blocks + query_block;
      begin = row[0];
      count = row[1] - row[0];
    }
  }

  __device__ int KeyBlock(const kernels::FlatPlanView& plan, int64_t entry) const {
    return plan.lists > 0 ? __ldg(plan.columns + begin + entry) : static_cast<int>(entry);
  }

  // Bit i: query i of the block attends the entry.
  __device__ uint64_t RowMask(const kernels::FlatPlanView& plan, int64_t entry) const {
    return plan.row_masks == nullptr ? ~uint64_t{0} : plan.row_masks[begin + entry];
  }

  // Whether a query may have no key at all.
  __device__ bool MayBeEmpty(const kernels::FlatPlanView& plan) const {
    return plan.row_masks != nullptr || count == 0;
  }

  // Element offset of this batch row and head.
  __device__ int64_t OffsetIn(const DeviceView& view) const {
    return batch * view.batch_stride + head * view.head_stride;
  }

  // Element offset of a token's row in the contiguous output.
  __device__ int64_t OutOffset(const BlockSparseArgs& args, int token) const {
    return ((static_cast<int64_t>(batch) * args.q_len + token) * args.heads + head) *
           args.head_size;
  }
};

inline __device__ bool IsFinite(float x) { return x - x == 0; }

// One over the sum of a row's weights. A row without keys is zeros. Else a sum of 0 means that all
// scores are -inf, and a score that is not a number or +inf has made the sum NaN: so is the row.
inline __device__ float FactorOf(float sum, bool may_be_empty) {
  if (sum > 0) return 1.0f / sum;
  return sum == 0 && may_be_empty ? 0.0f : std::numeric_limits<float>::quiet_NaN();
}

// Values that are not finite reach exactly the queries that attend them, whatever their weight is
// in float32: element `d` of a stored row becomes their sum, where it attends any. `row` is the
// query's place in its block. Slow; only for rows that have met one.
template <class T>
__device__ __noinline__ void AddOddValues(const BlockSparseArgs& args, Walk walk, int row, int d,
                                          typename T::Stored* out) {
  const auto* values = static_cast<const typename T::Stored*>(args.value.data);
  float odd = 0;
  for (int64_t entry = 0; entry < walk.count && odd == odd; ++entry) {
    if (((walk.RowMask(args.plan, entry) >> row) & 1) == 0) continue;
    const int block = walk.KeyBlock(args.plan, entry);
    const int32_t* tokens = args.plan.key_tokens + int64_t{block} * kernels::kBlock;
    for (int key = 0; key < args.plan.key_lengths[block]; ++key) {
      const float value =
          T::Widen(values[walk.OffsetIn(args.value) + tokens[key] * args.value.token_stride + d]);
      if (!IsFinite(value)) odd += value;
    }
  }
  if (odd != 0) out[d] = T::Narrow(odd);
}

inline unsigned GridOf(const BlockSparseArgs& args) {
  return static_cast<unsigned>(args.plan.query_blocks * args.batch * args.heads);
}

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_BLOCK_SPARSE_WALK_CUH_
