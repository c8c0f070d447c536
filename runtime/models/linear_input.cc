#include "runtime/models/linear_input.h"

#include "backends/intra_op.h"
#include "runtime/models/rows.h"

namespace denoised {

int64_t LinearInput::size(int64_t axis) const {
  const at::IntArrayRef all = sizes();
  return all[axis < 0 ? axis + static_cast<int64_t>(all.size()) : axis];
}

at::Tensor LinearInput::Whole() const {
  if (tensor_.defined()) return tensor_;
  const at::Tensor whole = at::empty(sizes_, at::TensorOptions(dtype_));
  const int64_t d = sizes_.back(), bytes = d * whole.element_size();
  char* const to = static_cast<char*>(whole.mutable_data_ptr());
  ParallelFor(whole.numel() / d, RowGrain(d),
              [&](int64_t begin, int64_t end) { rows_(begin, end - begin, to + begin * bytes); });
  return whole;
}

}  // namespace denoised
