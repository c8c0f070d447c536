#include "runtime/models/rope.h"

#include <algorithm>
#include <string>

#include "backends/error.h"

namespace denoised {
namespace {

constexpr double kTheta = 10000.0;

// Angles of `count` positions on an axis that owns `dims` of the head, float64 [count, dims / 2].
at::Tensor AxisAngles(int64_t count, int64_t dims) {
  const at::Tensor exponent = at::arange(0, dims, 2, at::kDouble) / static_cast<double>(dims);
  const at::Tensor frequency = at::reciprocal(at::pow(at::Scalar(kTheta), exponent));
  return at::outer(at::arange(count, at::kDouble), frequency);
}

// One axis' table spread over the whole grid: [T, H, W, pairs].
at::Tensor Spread(const at::Tensor& table, int axis, const std::array<int64_t, 3>& grid) {
  std::array<int64_t, 4> shape = {1, 1, 1, table.size(1)};
  shape[axis] = grid[axis];
  return table.view(shape).expand({grid[0], grid[1], grid[2], table.size(1)});
}

}  // namespace

RopeTables RopeCache::Get(const std::array<int64_t, 3>& grid) const {
  std::lock_guard<std::mutex> lock(mutex_);
  ++clock_;
  for (Entry& entry : entries_) {
    if (entry.used != 0 && entry.grid == grid) {
      entry.used = clock_;
      return entry.tables;
    }
  }
  RopeTables tables = Make(grid);
  Entry& oldest = *std::min_element(entries_.begin(), entries_.end(),
                                    [](const Entry& a, const Entry& b) { return a.used < b.used; });
  oldest = Entry{grid, tables, clock_};
  return tables;
}

RopeTables RopeCache::Make(const std::array<int64_t, 3>& grid) const {
  const int64_t side = 2 * (head_dim_ / 6);
  const std::array<int64_t, 3> dims = {head_dim_ - 2 * side, side, side};
  std::vector<at::Tensor> cosines, sines;
  for (int axis = 0; axis < 3; ++axis) {
    if (grid[axis] > max_positions_) {
      throw InvalidField("grid", "wanted at most " + std::to_string(max_positions_) +
                                     " token positions an axis (rope_max_seq_len), came " +
                                     std::to_string(grid[axis]));
    }
    if (dims[axis] == 0) continue;
    const at::Tensor angles = AxisAngles(grid[axis], dims[axis]);
    cosines.push_back(Spread(angles.cos().to(at::kFloat), axis, grid));
    sines.push_back(Spread(angles.sin().to(at::kFloat), axis, grid));
  }
  const int64_t tokens = grid[0] * grid[1] * grid[2];
  return {at::cat(cosines, -1).reshape({tokens, head_dim_ / 2}).to(device_),
          at::cat(sines, -1).reshape({tokens, head_dim_ / 2}).to(device_)};
}

}  // namespace denoised
