#include "runtime/schedulers/unipc_table.h"

#include <algorithm>
#include <vector>

namespace denoised {
namespace {

constexpr size_t kKeptTables = 8;  // of 2 MiB at most, at 10,000 steps

// The reference's quantities, each a tensor as there: 0-dim but for the last three.
struct Quantities {
  at::Tensor ratio, alpha, growth, b_of_h;
  at::Tensor relative;  // [order]: steps to the older predictions, and 1
  at::Tensor matrix;    // [order, order]: their powers
  at::Tensor vector;    // [order]
};

Quantities Reference(const at::Tensor& sigmas, bool bh1, int64_t from, int64_t to, int64_t order) {
  const auto alpha = [&](int64_t i) { return 1 - sigmas[i]; };
  // Half the log of the signal-to-noise ratio.
  const auto lambda = [&](int64_t i) { return at::log(alpha(i)) - at::log(sigmas[i]); };
  Quantities q;
  const at::Tensor begin = lambda(from);
  const at::Tensor h = lambda(to) - begin;
  const at::Tensor hh = -h;
  q.ratio = sigmas[to] / sigmas[from];
  q.alpha = alpha(to);
  q.growth = at::expm1(hh);
  q.b_of_h = bh1 ? hh : q.growth;

  std::vector<at::Tensor> steps;
  for (int64_t k = 1; k < order; ++k) steps.push_back((lambda(from - k) - begin) / h);
  steps.push_back(at::ones({}, at::kFloat));
  q.relative = at::stack(steps);

  std::vector<at::Tensor> rows, right;
  at::Tensor phi = q.growth / hh - 1;
  int64_t factorial = 1;
  for (int64_t k = 1; k <= order; ++k) {
    rows.push_back(at::pow(q.relative, static_cast<double>(k - 1)));
    right.push_back(phi * factorial / q.b_of_h);
    factorial *= k + 1;
    phi = phi / hh - 1.0 / static_cast<double>(factorial);
  }
  q.matrix = at::stack(rows);
  q.vector = at::stack(right);
  return q;
}

template <size_t kSize>
void Keep(const at::Tensor& from, int64_t count, std::array<float, kSize>* to) {
  const at::Tensor dense = from.contiguous();
  std::copy_n(dense.const_data_ptr<float>(), count, to->begin());
}

UniPcWay WayOf(const Quantities& q, int64_t order) {
  UniPcWay way;
  way.ratio = q.ratio.item<float>();
  way.growth = (q.alpha * q.growth).item<float>();
  way.spread = (q.alpha * q.b_of_h).item<float>();
  Keep(q.relative, order - 1, &way.steps);
  way.weights[0] = 0.5F;  // at the lowest order, whatever the equations say
  return way;
}

}  // namespace

template <typename Make>
UniPcWay UniPcTable::Found(Ways* ways, int64_t i, int64_t order, const Make& make) {
  const std::lock_guard lock(mutex_);
  auto found = ways->find({i, order});
  if (found == ways->end()) found = ways->emplace(std::pair{i, order}, make()).first;
  return found->second;
}

UniPcWay UniPcTable::Predictor(int64_t i, int64_t order) {
  return Found(&predictors_, i, order, [&] {
    const Quantities q = Reference(sigmas_, bh1_, i, i + 1, order);
    UniPcWay way = WayOf(q, order);
    if (const int64_t n = order - 1; n > 1) {
      const at::Tensor square = q.matrix.narrow(0, 0, n).narrow(1, 0, n);
      Keep(at::linalg_solve(square, q.vector.narrow(0, 0, n)), n, &way.weights);
    }
    return way;
  });
}

UniPcWay UniPcTable::Corrector(int64_t i, int64_t order) {
  return Found(&correctors_, i, order, [&] {
    const Quantities q = Reference(sigmas_, bh1_, i - 1, i, order);
    UniPcWay way = WayOf(q, order);
    if (order > 1) Keep(at::linalg_solve(q.matrix, q.vector), order, &way.weights);
    return way;
  });
}

std::shared_ptr<UniPcTable> UniPcTables::Of(const at::Tensor& sigmas) {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(
      recent_, [&](const auto& table) { return at::equal(table->sigmas(), sigmas); });
  auto table = found != recent_.end() ? *found : std::make_shared<UniPcTable>(sigmas, bh1_);
  if (found != recent_.end()) recent_.erase(found);
  recent_.push_front(table);
  if (recent_.size() > kKeptTables) recent_.pop_back();
  return table;
}

}  // namespace denoised
