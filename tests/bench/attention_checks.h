// Whether what an attention row computed is right: a sample of heads and queries against float64
// over the pairs that the backend attends, and those pairs against the rule that they follow, said
// once more here, for a backend that attends too little is no faster for it.
#ifndef DENOISED_TESTS_BENCH_ATTENTION_CHECKS_H_
#define DENOISED_TESTS_BENCH_ATTENTION_CHECKS_H_

#include <ATen/ATen.h>

#include "tests/bench/attention_calls.h"

namespace denoised {

// Queries of a sample, and for each the keys that it attends.
struct SampledPairs {
  at::Tensor queries;  // [n] int64
  at::Tensor pairs;    // [n, S_kv] bool
};

// Of one head, in the mask of the backend itself. Queries that only copy others are left out.
SampledPairs SamplePairs(const Attention& attention, const AttentionInputs& inputs, int64_t head);

// "error" and "error_limit" of `out` over the first and the last head: relative L2 where numerics
// are exact; of int8 and FP4 one less the cosine.
Json ErrorOf(const Attention& attention, const at::Tensor& out, const AttentionInputs& inputs);

// `row` as it is where the check holds; else nothing agrees, whatever was measured.
void Demand(bool holds, Json* row);

// Whether a query attends so many keys in the mean, a block of 64 more or less.
bool AttendsKeys(const Attention& attention, const AttentionInputs& inputs, double keys);

// Whether the first head's pairs are those of VMoBA's default rule (each query's own chunk and its
// best ones, until they hold a quarter of the stretched scores; arXiv 2506.23858) over chunks of
// such a shape. One pair in a hundred may differ: scores of bfloat16 that are level.
bool FollowsVmoba(const Attention& attention, const AttentionInputs& inputs, const Axes& grid,
                  const Axes& chunk);

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_ATTENTION_CHECKS_H_
