// How the costs of metrics and of shared plans grow: rows of control_bench.
#ifndef DENOISED_TESTS_BENCH_CONTROL_GROWTH_H_
#define DENOISED_TESTS_BENCH_CONTROL_GROWTH_H_

#include "tests/bench/timing.h"

namespace denoised {

Rows ControlGrowthRows();

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_CONTROL_GROWTH_H_
