#include "tests/bench/attention_checks.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "backends/intra_op.h"

namespace denoised {
namespace {

constexpr int64_t kSample = 64;
constexpr double kVmobaShare = 0.25;

AttentionInputs HeadOf(const AttentionInputs& inputs, int64_t head) {
  AttentionInputs one = inputs;
  for (at::Tensor* tensor : {&one.query, &one.key, &one.value, &one.gate}) {
    if (tensor->defined()) *tensor = tensor->narrow(2, head, 1);
  }
  return one;
}

// Without a stride, which could meet the same place of every tile.
at::Tensor SampleOf(int64_t tokens) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(tokens);
  return at::randperm(tokens, generator, at::kLong).narrow(0, 0, std::min(kSample, tokens));
}

// [S, D] float64 of the only head.
at::Tensor HeadRows(const at::Tensor& x) { return x[0].select(1, 0).to(at::kDouble); }

// Float64 [n, D] for the sample.
at::Tensor Wanted(const AttentionInputs& one, const SampledPairs& sample,
                  const at::Tensor& branch) {
  const at::Tensor queries = HeadRows(one.query).index_select(0, sample.queries);
  const at::Tensor scores = at::matmul(queries, HeadRows(one.key).t()) * one.scale;
  const at::Tensor masked = scores.masked_fill(sample.pairs.logical_not(), -INFINITY);
  at::Tensor want = at::matmul(at::softmax(masked, -1), HeadRows(one.value));
  if (branch.defined()) want += HeadRows(branch).index_select(0, sample.queries);
  return want;
}

// Number of each token's chunk.
at::Tensor ChunkOf(const Axes& grid, const Axes& chunk) {
  const auto along = [&](int axis) {
    return at::arange(grid[axis], at::kLong).floor_divide(chunk[axis]);
  };
  const Axes counts = TilesPerAxis(grid, chunk);
  return (along(0).view({-1, 1, 1}) * (counts[1] * counts[2]) +
          along(1).view({1, -1, 1}) * counts[2] + along(2).view({1, 1, -1}))
      .flatten();
}

// Own chunks, and of the others the best until all together hold the share, one at least: [n,
// chunks] bool.
at::Tensor Chosen(const at::Tensor& gates, const at::Tensor& own) {
  const at::Tensor low = gates.amin(1, true), range = gates.amax(1, true) - low;
  const at::Tensor x = (gates - low) / range, whole = x.sum(1, true);
  const at::Tensor need = kVmobaShare - x.masked_fill(own.logical_not(), 0).sum(1, true) / whole;
  const auto [sorted, order] = x.masked_fill(own, 0).sort(1, /*descending=*/true);
  at::Tensor stays = ((sorted.cumsum(1) - sorted) / whole).lt(need);
  stays.select(1, 0).fill_(true);
  return at::zeros(gates.sizes(), at::kBool).scatter(1, order, stays).logical_or(own);
}

}  // namespace

SampledPairs SamplePairs(const Attention& attention, const AttentionInputs& inputs, int64_t head) {
  const at::Tensor queries = SampleOf(inputs.query.size(1));
  const at::Tensor all = attention.PairsOf(HeadOf(inputs, head));
  if (!all.defined()) {
    return {queries, at::ones({queries.size(0), inputs.key.size(1)}, at::kBool)};
  }
  const at::Tensor pairs =
      all.expand({1, 1, inputs.query.size(1), all.size(3)})[0][0].index_select(0, queries);
  const at::Tensor kept = pairs.any(1).nonzero().squeeze(1);
  return {queries.index_select(0, kept), pairs.index_select(0, kept)};
}

Json ErrorOf(const Attention& attention, const at::Tensor& out, const AttentionInputs& inputs) {
  const ScopedLibTorchThreads threads;
  std::vector<at::Tensor> got, want;
  for (const int64_t head : {int64_t{0}, inputs.query.size(2) - 1}) {
    const AttentionInputs one = HeadOf(inputs, head);
    const SampledPairs sample = SamplePairs(attention, inputs, head);
    TORCH_CHECK(sample.queries.size(0) >= kSample / 8, "too few queries to tell anything");
    want.push_back(Wanted(one, sample, attention.BranchOf(one)));
    got.push_back(HeadRows(out.narrow(2, head, 1)).index_select(0, sample.queries));
  }
  const at::Tensor a = at::cat(got).flatten(), b = at::cat(want).flatten();
  if (attention.numerics() == Numerics::kExact) {
    return {{"error", RelativeError(a, b)}, {"error_limit", DenseErrorLimit(out.scalar_type())}};
  }
  return {{"error", 1 - (a.dot(b) / (a.norm() * b.norm())).item<double>()},
          {"error_limit", attention.numerics() == Numerics::kInt8 ? 1e-3 : 0.02}};
}

void Demand(bool holds, Json* row) {
  if (!holds) (*row)["error"] = 1;
}

bool AttendsKeys(const Attention& attention, const AttentionInputs& inputs, double keys) {
  const SampledPairs sample = SamplePairs(attention, inputs, 0);
  const double mean = sample.pairs.sum(1).to(at::kDouble).mean().item<double>();
  return std::abs(mean - keys) <= 64;
}

bool FollowsVmoba(const Attention& attention, const AttentionInputs& inputs, const Axes& grid,
                  const Axes& chunk) {
  const ScopedLibTorchThreads threads;
  const SampledPairs sample = SamplePairs(attention, inputs, 0);
  const AttentionInputs one = HeadOf(inputs, 0);
  const at::Tensor chunk_of = ChunkOf(grid, chunk);
  const at::Tensor keys = HeadRows(one.key), counts = chunk_of.bincount();
  const at::Tensor means =
      at::zeros({counts.size(0), keys.size(1)}, at::kDouble).index_add_(0, chunk_of, keys) /
      counts.unsqueeze(1);
  const at::Tensor queries = HeadRows(one.query).index_select(0, sample.queries);
  const at::Tensor own =
      at::one_hot(chunk_of.index_select(0, sample.queries), counts.size(0)).to(at::kBool);
  const at::Tensor rule = Chosen(at::matmul(queries, means.t()), own).index_select(1, chunk_of);
  const auto count = [](const at::Tensor& x) { return x.sum().item<double>(); };
  return count(rule.ne(sample.pairs)) <= 0.01 * count(rule);
}

}  // namespace denoised
