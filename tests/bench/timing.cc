#include "tests/bench/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <thread>

#include "backends/error.h"
#include "backends/intra_op.h"
#include "runtime/models/layers.h"
#include "runtime/pipelines/device.h"
#include "runtime/threads.h"
#include "tests/bench/libtorch_linear.h"

namespace denoised {
namespace {

BenchOptions Parse(int argc, char** argv) {
  BenchOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--pairs=", 0) == 0) {
      options.pairs = std::stoi(argument.substr(8));
    } else if (argument.rfind("--threads=", 0) == 0) {
      options.threads = std::stoi(argument.substr(10));
    } else if (argument.rfind("--cpu_isa=", 0) == 0) {
      options.cpu_isa = CpuIsaFromName(argument.substr(10)).value();
    } else {
      options.rows.insert(argument);
    }
  }
  return options;
}

Work LibTorchProduct(at::ScalarType dtype, const GemmShape& shape) {
  const at::Tensor x = at::randn({shape.rows, shape.in}).to(dtype);
  const LibTorchLinear layer(x, at::randn({shape.out, shape.in}).to(dtype), {});
  return [x, layer] { layer(x); };
}

}  // namespace

// OpenMP's helpers spin for tens of milliseconds after LibTorch's last operation, and would take a
// processor from the other side. And for 100 ms our own loops still go on with OpenMP's threads
// (kLinger of backends/intra_op.cc): a sample that began sooner would be of another program.
constexpr std::chrono::milliseconds kSettle(150);

void Settle() { std::this_thread::sleep_for(kSettle); }

double SecondsOf(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Json Alternate(const Work& ours, const Work& peer, int pairs, const Work& after) {
  const auto repeats = [](const Work& work) {
    work();
    return std::max(1, static_cast<int>(std::ceil(0.05 / std::max(SecondsOf(work), 1e-6))));
  };
  const int ours_repeats = repeats(ours), peer_repeats = repeats(peer);
  const auto sample = [](const Work& work, int repeat) {
    Settle();
    work();
    return SecondsOf([&] {
             for (int i = 0; i < repeat; ++i) work();
           }) /
           repeat;
  };
  Json samples = Json::array();
  for (int pair = 0; pair < pairs; ++pair) {
    double mine = pair % 2 == 0 ? sample(ours, ours_repeats) : 0;
    const double theirs = sample(peer, peer_repeats);
    if (pair % 2 == 1) mine = sample(ours, ours_repeats);
    samples.push_back({mine, theirs});
    if (after) after();
  }
  return samples;
}

double MedianSeconds(const Work& work, int count) {
  Settle();
  work();
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) seconds.push_back(SecondsOf(work));
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

double RelativeError(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor wide = b.to(at::kDouble);
  return ((a.to(at::kDouble) - wide).norm() / wide.norm()).item<double>();
}

at::ScalarType AutoDType() { return ParseDType("auto", QueryCpu()); }

std::string DTypeName(at::ScalarType dtype) { return dtype == at::kFloat ? "float32" : "bf16"; }

Work PackedProduct(at::ScalarType dtype, const GemmShape& shape) {
  const at::Tensor x = at::randn({shape.rows, shape.in}).to(dtype);
  const Linear layer(at::randn({shape.out, shape.in}).to(dtype), {}, LinearNumerics::kPacked);
  return [x, layer] { layer(x); };
}

GemmRates::GemmRates(at::ScalarType dtype, const GemmShape& shape)
    : multiply_adds_(shape.multiply_adds()),
      ours_(PackedProduct(dtype, shape)),
      peer_(LibTorchProduct(dtype, shape)) {}

double GemmRates::Best() const {
  double least = INFINITY;
  for (const Work& product : {ours_, peer_}) {
    Settle();
    product();
    for (int i = 0; i < 5; ++i) least = std::min(least, SecondsOf(product));
  }
  return multiply_adds_ / least;
}

int RunBench(int argc, char** argv, const Rows& rows) {
  KeepFreedMemory();
  const BenchOptions options = Parse(argc, argv);
  PinCpuIsa(options.cpu_isa);
  const c10::InferenceMode inference;
  SetIntraOpThreads(options.threads);
  const std::string level(CpuIsaName(CurrentCpuIsa()));
  for (const auto& [row, emitter] : rows) {
    if (!options.Wants(row)) continue;
    const auto print = [&](Json line) {
      line["level"] = level;
      std::cout << line.dump() << std::endl;
    };
    try {
      emitter(options, print);
    } catch (const Error& error) {
      if (error.code() != StatusCode::kFailedPrecondition) throw;
      print({{"row", row}, {"skipped", error.what()}});
    }
  }
  return 0;
}

}  // namespace denoised
