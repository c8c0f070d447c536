// The rows of the packed matrix product, both sides in one process: G1 (320 rows and more), G2 (40
// to 320). The peer is LibTorch's best form: MKL in float32, oneDNN in bfloat16 with its weights as
// they are or in blocks, whichever is faster here; a row's `peer_form` says which.
//
//   gemm_bench [--pairs=N] [--threads=N] [--cpu_isa=LEVEL] [ROW...]      output: see timing.h
#include "backends/intra_op.h"
#include "runtime/models/layers.h"
#include "tests/bench/libtorch_linear.h"
#include "tests/bench/timing.h"

namespace denoised {
namespace {

struct Product {
  int64_t m, k, n;
};

std::string ShapeOf(const Product& p) {
  return std::to_string(p.m) + "x" + std::to_string(p.k) + "x" + std::to_string(p.n);
}

// Both biased, as every layer of a transformer is.
void EmitProduct(const char* row, const Product& p, at::ScalarType dtype,
                 const BenchOptions& options, const Emit& emit) {
  const at::Tensor x = at::randn({p.m, p.k}).to(dtype), bias = at::randn({p.n}).to(dtype);
  const at::Tensor weight = at::randn({p.n, p.k}).to(dtype);
  const Linear ours(weight, bias, LinearNumerics::kPacked);
  const LibTorchLinear peer(x, weight, bias);
  const Json samples = Alternate([&] { ours(x); }, [&] { peer(x); }, options.pairs);
  const ScopedLibTorchThreads threads;
  const at::Tensor exact =
      at::linear(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble));
  const double flops = 2.0 * static_cast<double>(p.m * p.k * p.n);
  std::vector<double> rates;
  for (const Json& pair : samples) rates.push_back(flops / pair[0].get<double>() / 1e9);
  std::sort(rates.begin(), rates.end());
  emit({{"row", row},
        {"name", "packed GEMM against LibTorch, " + DTypeName(dtype) + ", " + ShapeOf(p)},
        {"unit", "s"},
        {"gflops", rates[rates.size() / 2]},
        {"peer_form", peer.form()},
        {"error", RelativeError(ours(x), exact)},
        {"error_limit", dtype == at::kFloat ? 1e-5 : 3e-3},
        {"samples", samples}});
}

void EmitAll(const char* row, const std::vector<Product>& products, const BenchOptions& options,
             const Emit& emit) {
  std::vector<at::ScalarType> dtypes = {at::kFloat};
  if (AutoDType() != at::kFloat) dtypes.push_back(AutoDType());
  for (const at::ScalarType dtype : dtypes) {
    for (const Product& product : products) EmitProduct(row, product, dtype, options, emit);
  }
}

// The mid preset's layers, and those of the shipped model (320 tokens).
void EmitG1(const BenchOptions& options, const Emit& emit) {
  EmitAll("G1",
          {{1560, 1536, 1536},
           {1560, 1536, 8960},
           {1560, 8960, 1536},
           {320, 192, 768},
           {320, 768, 192}},
          options, emit);
}

// A prompt of 40 tokens in an encoder of width 1024, the tiny preset's layers, and between.
void EmitG2(const BenchOptions& options, const Emit& emit) {
  EmitAll("G2", {{40, 1024, 2560}, {40, 2560, 1024}, {96, 256, 512}, {192, 512, 2048}}, options,
          emit);
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  return denoised::RunBench(argc, argv, {{"G1", denoised::EmitG1}, {"G2", denoised::EmitG2}});
}
