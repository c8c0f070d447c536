// What a linear layer multiplies. ATen; engine thread, but for the making of rows: any.
#ifndef DENOISED_RUNTIME_MODELS_LINEAR_INPUT_H_
#define DENOISED_RUNTIME_MODELS_LINEAR_INPUT_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "backends/kernels/gemm.h"

namespace denoised {

// A tensor [.., D], or one whose rows are made as our own product packs them: so that they are
// near, and are never written whole to memory and read from there. Cheap to copy.
class LinearInput {
 public:
  LinearInput(at::Tensor x) : tensor_(std::move(x)) {  // NOLINT(google-explicit-constructor)
    TORCH_CHECK(tensor_.defined(), "linear: no tensor");
  }
  // `rows` puts them as `dtype`, float32 or bfloat16; a row may be asked for more than once. What
  // they are made from stays as it is until the last product is done. CPU.
  LinearInput(at::IntArrayRef sizes, at::ScalarType dtype, kernels::RowReader rows)
      : sizes_(sizes.vec()), dtype_(dtype), rows_(std::move(rows)) {}

  at::IntArrayRef sizes() const { return tensor_.defined() ? tensor_.sizes() : sizes_; }
  int64_t size(int64_t axis) const;
  at::ScalarType dtype() const { return tensor_.defined() ? tensor_.scalar_type() : dtype_; }

  // All rows. Parallel inside, where they are still to be made.
  at::Tensor Whole() const;
  // The same with rows that lie one after the other, if they lie anywhere.
  LinearInput Dense() const { return tensor_.defined() ? tensor_.contiguous() : *this; }
  // Of a dense one: where the rows lie, or who makes them; the other is null.
  const void* data() const { return tensor_.defined() ? tensor_.const_data_ptr() : nullptr; }
  const kernels::RowReader* rows() const { return tensor_.defined() ? nullptr : &rows_; }

 private:
  at::Tensor tensor_;
  std::vector<int64_t> sizes_;
  at::ScalarType dtype_ = at::kFloat;
  kernels::RowReader rows_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MODELS_LINEAR_INPUT_H_
