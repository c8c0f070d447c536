// What the bench programs share: options, samples taken in turns, errors.
#ifndef DENOISED_TESTS_BENCH_TIMING_H_
#define DENOISED_TESTS_BENCH_TIMING_H_

#include <ATen/ATen.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu_isa.h"

namespace denoised {

using Json = nlohmann::json;
using Work = std::function<void()>;
using Emit = std::function<void(Json)>;

struct BenchOptions {
  int pairs = 5;
  int threads = 2;
  CpuIsa cpu_isa = CpuIsa::kAuto;
  std::set<std::string> rows;
  bool Wants(const std::string& row) const { return rows.empty() || rows.count(row) > 0; }
};

// A row's id and what measures it; a function may emit several lines, also of other ids.
using Emitter = void (*)(const BenchOptions&, const Emit&);
using Rows = std::vector<std::pair<std::string, Emitter>>;

double SecondsOf(const Work& work);

// Rests until what LibTorch did last touches no measurement of ours.
void Settle();

// Seconds of both sides in turns, each after a rest and a warm-up of its own; the side that starts
// changes. Short work is repeated until a sample takes 50 ms. `after` follows each pair.
Json Alternate(const Work& ours, const Work& peer, int pairs, const Work& after = {});

double MedianSeconds(const Work& work, int count);

// ||a - b|| / ||b||
double RelativeError(const at::Tensor& a, const at::Tensor& b);

// The dtype that --dtype=auto takes for a model on this CPU.
at::ScalarType AutoDType();
std::string DTypeName(at::ScalarType dtype);

// A product [rows, in] x [in, out]; by itself the layer that stands for what this machine can do.
struct GemmShape {
  int64_t rows = 1560, in = 1536, out = 8960;
  double multiply_adds() const { return static_cast<double>(rows * in * out); }
};

// By our own packed GEMM.
Work PackedProduct(at::ScalarType dtype, const GemmShape& shape = {});

// One product, by our own packed GEMM and by LibTorch.
class GemmRates {
 public:
  explicit GemmRates(at::ScalarType dtype, const GemmShape& shape = {});
  // Multiply-adds a second of the better of both, at the moment: the fastest of five calls.
  double Best() const;

 private:
  const double multiply_adds_;
  const Work ours_;
  const Work peer_;
};

// main() of a bench program: --pairs, --threads, --cpu_isa and rows; prints a JSON line a row.
// A backend that this build or machine lacks gives a row with `skipped` and its own sentence.
int RunBench(int argc, char** argv, const Rows& rows);

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_TIMING_H_
