// Calls of the packed matrix product for its tests: tensors in, tensors out, however threads,
// strides and instruction sets are.
#ifndef DENOISED_TESTS_BACKENDS_GEMM_CALLS_H_
#define DENOISED_TESTS_BACKENDS_GEMM_CALLS_H_

#include <ATen/ATen.h>

#include <ostream>

#include "backends/kernels/gemm.h"
#include "tests/backends/on_threads.h"

namespace denoised::kernels {

at::ScalarType TypeOf(Element element);

// On this thread's team of two, which throws what a worker throws.
RunWorkers OnOwnTeam();

// An instruction set whose tiles this CPU has; AMX ones are emulated where it has none.
struct GemmCase {
  GemmIsa isa;
  Element element;
};
void PrintTo(const GemmCase& c, std::ostream* out);
bool Runs(GemmIsa isa);

// How rows are multiplied: what must not change a bit.
struct How {
  int threads = 1;
  int64_t x_gap = 0, y_gap = 0;  // elements between rows
  Activation activation = Activation::kNone;
};

WeightPanels Pack(const at::Tensor& weight, const GemmCase& c);
// GemmMany as Multiply calls Gemm: with emulated tiles where the CPU has no others.
void MultiplyMany(std::span<const GemmProduct> products, const RunWorkers& run_workers,
                  const RowsDone& done = {});
at::Tensor Multiply(const at::Tensor& x, const WeightPanels& weight, const at::Tensor& bias,
                    const How& how = {});

// The largest error in units of what it may be: half a step of the result's dtype, and of the sum
// `share` of the magnitudes that went into it.
double ErrorShare(const at::Tensor& y, const at::Tensor& wanted, const at::Tensor& magnitudes,
                  double share = 4e-7);

}  // namespace denoised::kernels

#endif  // DENOISED_TESTS_BACKENDS_GEMM_CALLS_H_
