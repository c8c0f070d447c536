// A BlockPlan as the CUDA kernels read it: every block has room for kBlock tokens, so that a thread
// finds its token with one load; all arrays lie in one run of bytes, so that one copy takes them to
// the device. Torch-free, CUDA-free: made and checked on the host.
#ifndef DENOISED_BACKENDS_KERNELS_FLAT_PLAN_H_
#define DENOISED_BACKENDS_KERNELS_FLAT_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backends/kernels/block_sparse.h"

namespace denoised::kernels {

// Where the arrays of a flat plan are: in host memory or in a device's.
struct FlatPlanView {
  int64_t query_blocks = 0, key_blocks = 0;
  int64_t lists = 0;                      // as BlockPlan's; 0 = every key block, no rows
  const int32_t* query_tokens = nullptr;  // [query_blocks][kBlock]; -1 past a block's end
  const int32_t* key_tokens = nullptr;    // [key_blocks][kBlock]; -1 past a block's end
  const int32_t* key_lengths = nullptr;   // [key_blocks]
  const int64_t* row_begin = nullptr;     // [lists * query_blocks + 1]
  const int32_t* columns = nullptr;       // [row_begin's last]
  const uint64_t* row_masks = nullptr;    // as columns, or null: all queries of a block attend
};

// Owns the bytes. Immutable after Flatten.
class FlatPlan {
 public:
  static FlatPlan Flatten(const BlockPlan& plan);

  const std::vector<std::byte>& bytes() const { return bytes_; }
  // The arrays of a copy of bytes() that starts at `base`, 16-byte aligned.
  FlatPlanView ViewAt(const void* base) const;

 private:
  static constexpr size_t kAbsent = ~size_t{0};

  template <class T>
  size_t Append(const std::vector<T>& values);

  std::vector<std::byte> bytes_;
  FlatPlanView counts_;                                         // its pointers stay null
  size_t query_tokens_ = 0, key_tokens_ = 0, key_lengths_ = 0;  // byte offsets
  size_t row_begin_ = 0, columns_ = 0, row_masks_ = kAbsent;
};

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_FLAT_PLAN_H_
