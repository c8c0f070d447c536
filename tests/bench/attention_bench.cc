// The attention rows, both sides in one process: A0 A4 A5 A6 A6b E1 E2 E3 E11 E17.
//
//   attention_bench [--pairs=N] [--threads=N] [--cpu_isa=LEVEL] [ROW...]
//
// Prints a JSON line a row for bench.py: either `samples` (seconds of ours and of the peer, a pair
// each, taken in turns) or a `value`; with the error of the output where both sides should agree.
// A backend that this build or machine lacks gives a row with `skipped` and its own sentence.
#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/cpu_isa.h"
#include "backends/registry.h"
#include "runtime/attention_planner.h"
#include "runtime/threads.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using Work = std::function<void()>;

constexpr int64_t kHeads = 12;
constexpr int64_t kHeadSize = 128;

struct Options {
  int pairs = 5;
  int threads = 2;
  CpuIsa cpu_isa = CpuIsa::kAuto;
  std::set<std::string> rows;
  bool Wants(const std::string& row) const { return rows.empty() || rows.count(row) > 0; }
};

double SecondsOf(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds of both sides in turns after a warm-up; the side that starts changes. Short work is
// repeated until a sample takes 50 ms.
Json Alternate(const Work& ours, const Work& peer, int pairs) {
  const auto repeats = [](const Work& work) {
    work();
    return std::max(1, static_cast<int>(std::ceil(0.05 / std::max(SecondsOf(work), 1e-6))));
  };
  const int ours_repeats = repeats(ours), peer_repeats = repeats(peer);
  const auto sample = [](const Work& work, int repeat) {
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
  }
  return samples;
}

double MedianSeconds(const Work& work, int count) {
  work();
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) seconds.push_back(SecondsOf(work));
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// ||a - b|| / ||b||
double RelativeError(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor wide = b.to(at::kDouble);
  return ((a.to(at::kDouble) - wide).norm() / wide.norm()).item<double>();
}

AttentionInputs RandomInputs(int64_t tokens, at::ScalarType dtype = at::kBFloat16) {
  at::manual_seed(tokens);
  AttentionInputs inputs;
  for (at::Tensor* tensor : {&inputs.query, &inputs.key, &inputs.value}) {
    *tensor = at::randn({1, tokens, kHeads, kHeadSize}, at::kFloat).to(dtype);
  }
  inputs.scale = 1 / std::sqrt(static_cast<double>(kHeadSize));
  return inputs;
}

AttentionSpec SpecOf(int64_t tokens, const std::array<int64_t, 3>& grid) {
  AttentionSpec spec;
  spec.num_heads = kHeads;
  spec.head_size = kHeadSize;
  spec.dtype = DType::kBFloat16;
  spec.q_len = spec.kv_len = tokens;
  spec.grid = grid;
  return spec;
}

int64_t Tokens(const std::array<int64_t, 3>& grid) { return grid[0] * grid[1] * grid[2]; }

// A backend with the metadata for one shape, ready to run.
class Attention {
 public:
  Attention(AttnBackend id, const std::array<int64_t, 3>& grid,
            const std::string& parameters = "") {
    const AttentionSpec spec = SpecOf(Tokens(grid), grid);
    if (const auto reason = BackendRegistry::Default().WhyNot(id, spec, QueryCpu())) {
      throw Error(StatusCode::kFailedPrecondition,
                  std::string(AttnBackendName(id)) + ": " + *reason);
    }
    backend_ = BackendRegistry::Default().Find(id)->backend;
    MetadataRequest request;
    request.spec = spec;
    request.parameters_json = parameters;
    if (const auto builder = backend_->MakeBuilder()) metadata_ = builder->Build(request);
  }
  at::Tensor operator()(const AttentionInputs& inputs) const {
    return backend_->Forward(inputs, metadata_.get());
  }

 private:
  const AttentionBackend* backend_ = nullptr;
  std::shared_ptr<const AttentionMetadata> metadata_;
};

at::Tensor LibTorchSdpa(const AttentionInputs& inputs) {
  return at::scaled_dot_product_attention(inputs.query.transpose(1, 2), inputs.key.transpose(1, 2),
                                          inputs.value.transpose(1, 2), {}, 0, false, inputs.scale)
      .transpose(1, 2);
}

// The exact answer for a sample of the queries; all of them would take minutes.
double ErrorToFloat64(const at::Tensor& out, const AttentionInputs& inputs) {
  const int64_t stride = std::max<int64_t>(1, inputs.query.size(1) / 64);
  const auto rows = [&](const at::Tensor& x) { return x.slice(1, 0, c10::nullopt, stride); };
  AttentionInputs few = inputs;
  few.query = rows(inputs.query).to(at::kDouble);
  few.key = inputs.key.to(at::kDouble);
  few.value = inputs.value.to(at::kDouble);
  return RelativeError(rows(out), LibTorchSdpa(few));
}

const std::vector<std::array<int64_t, 3>> kWanGrids = {{1, 30, 52}, {2, 30, 52}, {4, 30, 52}};
const std::array<int64_t, 3> kLongGrid = {4, 30, 52};  // 6240 tokens

std::string Shape(int64_t tokens) {
  return std::to_string(kHeads) + "x" + std::to_string(tokens) + "x" + std::to_string(kHeadSize);
}

double AttentionFlops(int64_t tokens) {
  return 4.0 * kHeads * static_cast<double>(tokens) * static_cast<double>(tokens) * kHeadSize;
}

// Multiply-adds of the linear layer that stands for what this machine can do in bf16.
struct LinearRate {
  at::Tensor x = at::randn({1560, 1536}, at::kFloat).to(at::kBFloat16);
  at::Tensor weight = at::randn({8960, 1536}, at::kFloat).to(at::kBFloat16);
  double flops = 2.0 * 1560 * 1536 * 8960;
  void operator()() const { at::linear(x, weight); }
};

void EmitA4(const Options& options, const std::function<void(Json)>& emit) {
  for (const auto& grid : kWanGrids) {
    const AttentionInputs inputs = RandomInputs(Tokens(grid));
    const Attention flash(AttnBackend::kFlashAttn, grid);
    Json row = {{"row", "A4"}, {"unit", "s"}, {"error_limit", 1e-2}, {"aim", 4.0}};
    row["name"] = "FLASH_ATTN against LibTorch SDPA, bf16, " + Shape(Tokens(grid));
    row["pass_mark"] = QueryCpu().amx_bf16 ? 1.15 : 2.0;
    row["error"] = ErrorToFloat64(flash(inputs), inputs);
    row["samples"] =
        Alternate([&] { flash(inputs); }, [&] { LibTorchSdpa(inputs); }, options.pairs);
    emit(row);
  }
}

// Samples are seconds a FLOP, so the ratio is the attention's share of the linear rate.
void EmitA5(const Options& options, const std::function<void(Json)>& emit) {
  const LinearRate linear;
  for (const auto& grid : kWanGrids) {
    const AttentionInputs inputs = RandomInputs(Tokens(grid));
    const Attention flash(AttnBackend::kFlashAttn, grid);
    Json samples = Alternate([&] { flash(inputs); }, linear, options.pairs);
    for (Json& pair : samples) {
      pair[0] = pair[0].get<double>() / AttentionFlops(Tokens(grid));
      pair[1] = pair[1].get<double>() / linear.flops;
    }
    emit({{"row", "A5"},
          {"name", "FLASH_ATTN's share of the bf16 linear rate, " + Shape(Tokens(grid))},
          {"unit", "s/FLOP"},
          {"error", ErrorToFloat64(flash(inputs), inputs)},
          {"error_limit", 1e-2},
          {"samples", samples},
          {"pass_mark", 0.45},
          {"aim", 0.70}});
  }
}

void EmitA6(const Options& options, const std::function<void(Json)>& emit) {
  const AttentionInputs inputs = RandomInputs(Tokens(kLongGrid));
  const Attention dense(AttnBackend::kFlashAttn, kLongGrid);
  const Attention sparse(AttnBackend::kVideoSparseAttn, kLongGrid, R"({"sparsity": 0.875})");
  // The same code with every block taken must be the dense answer.
  const Attention full(AttnBackend::kVideoSparseAttn, kLongGrid, R"({"sparsity": 0.0})");
  emit({{"row", "A6"},
        {"name", "VIDEO_SPARSE_ATTN at 12.5 % density against own dense, " + Shape(6240)},
        {"unit", "s"},
        {"error", RelativeError(full(inputs), dense(inputs))},
        {"error_limit", 2e-2},
        {"samples", Alternate([&] { sparse(inputs); }, [&] { dense(inputs); }, options.pairs)},
        {"pass_mark", 5.0},
        {"aim", 7.0}});
}

void EmitA6b(const Options& options, const std::function<void(Json)>& emit) {
  const AttentionInputs inputs = RandomInputs(Tokens(kLongGrid));
  const Attention dense(AttnBackend::kFlashAttn, kLongGrid);
  const Attention sage(AttnBackend::kSageAttn, kLongGrid);
  const at::Tensor a = sage(inputs).to(at::kDouble).flatten();
  const at::Tensor b = dense(inputs).to(at::kDouble).flatten();
  emit({{"row", "A6b"},
        {"name", "SAGE_ATTN against own dense bf16, " + Shape(6240) + ", error is 1 - cosine"},
        {"unit", "s"},
        {"error", 1 - (a.dot(b) / (a.norm() * b.norm())).item<double>()},
        {"error_limit", 1e-3},
        {"samples", Alternate([&] { sage(inputs); }, [&] { dense(inputs); }, options.pairs)},
        {"pass_mark", 1.1},
        {"aim", 1.5}});
}

// Every backend of this machine at its default parameters, a line each; no peer and no mark. The
// slow ones run once.
void EmitA0(const Options& options, const std::function<void(Json)>& emit) {
  const std::set<AttnBackend> slow = {AttnBackend::kReference, AttnBackend::kSageAttnThree,
                                      AttnBackend::kAttnQatInfer};
  for (const auto& entry : BackendRegistry::Default().entries()) {
    const AttentionSpec spec = SpecOf(Tokens(kLongGrid), kLongGrid);
    if (BackendRegistry::Default().WhyNot(entry.id, spec, QueryCpu())) continue;
    Json seconds = Json::object();
    for (const auto& grid : {kWanGrids.front(), kLongGrid}) {
      const AttentionInputs inputs = RandomInputs(Tokens(grid));
      const Attention attend(entry.id, grid);
      seconds[std::to_string(Tokens(grid))] =
          MedianSeconds([&] { attend(inputs); }, slow.contains(entry.id) ? 1 : options.pairs);
    }
    emit({{"row", "A0"},
          {"name", std::string(AttnBackendName(entry.id)) + ", default parameters, bf16, 12 x 128"},
          {"unit", "s"},
          {"seconds", seconds}});
  }
}

// Grids of whole 4 x 4 x 4 tiles, each twice the one before.
const std::vector<std::array<int64_t, 3>> kDoublingGrids = {
    {4, 16, 24}, {8, 16, 24}, {8, 32, 24}, {16, 32, 24}};

void EmitE1(const Options& options, const std::function<void(Json)>& emit) {
  Json rates = Json::object();
  double best = 0, worst = INFINITY;
  for (const auto& grid : kDoublingGrids) {
    const AttentionInputs inputs = RandomInputs(Tokens(grid));
    const Attention flash(AttnBackend::kFlashAttn, grid);
    const double seconds = MedianSeconds([&] { flash(inputs); }, options.pairs);
    const double rate = AttentionFlops(Tokens(grid)) / seconds;
    rates[std::to_string(Tokens(grid))] = rate / 1e9;
    best = std::max(best, rate);
    worst = std::min(worst, rate);
  }
  emit({{"row", "E1"},
        {"name", "dense attention rate over N, worst over best"},
        {"gflops", rates},
        {"value", worst / best},
        {"pass_mark", 0.85},
        {"aim", 0.97}});
}

// Slope and intercept of the least-squares line through (x, y).
std::pair<double, double> Line(const std::vector<double>& x, const std::vector<double>& y) {
  const double n = static_cast<double>(x.size());
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    sx += x[i];
    sy += y[i];
    sxx += x[i] * x[i];
    sxy += x[i] * y[i];
  }
  const double slope = (n * sxy - sx * sy) / (n * sxx - sx * sx);
  return {slope, (sy - slope * sx) / n};
}

void EmitE2(const Options& options, const std::function<void(Json)>& emit) {
  std::vector<double> log_tokens, log_seconds;
  Json seconds_by_tokens = Json::object();
  for (const auto& grid : kDoublingGrids) {
    const AttentionInputs inputs = RandomInputs(Tokens(grid));
    const Attention sparse(AttnBackend::kVideoSparseAttn, grid, R"({"top_k": 8})");
    const double seconds = MedianSeconds([&] { sparse(inputs); }, options.pairs);
    seconds_by_tokens[std::to_string(Tokens(grid))] = seconds;
    log_tokens.push_back(std::log(static_cast<double>(Tokens(grid))));
    log_seconds.push_back(std::log(seconds));
  }
  emit({{"row", "E2"},
        {"name", "sparse time over N at top_k 8, exponent"},
        {"seconds", seconds_by_tokens},
        {"value", Line(log_tokens, log_seconds).first},
        {"lower_is_better", true},
        {"pass_mark", 1.15},
        {"aim", 1.05}});
}

void EmitE3(const Options& options, const std::function<void(Json)>& emit) {
  const std::array<int64_t, 3> grid = {8, 32, 24};
  const AttentionInputs inputs = RandomInputs(Tokens(grid));
  std::vector<double> densities = {0.05, 0.10, 0.20, 0.30, 0.40, 0.50}, times;
  Json seconds_by_density = Json::object();
  for (const double density : densities) {
    const Json parameters = {{"sparsity", 1 - density}};
    const Attention sparse(AttnBackend::kVideoSparseAttn, grid, parameters.dump());
    times.push_back(MedianSeconds([&] { sparse(inputs); }, options.pairs));
    seconds_by_density[std::to_string(density).substr(0, 4)] = times.back();
  }
  const auto [slope, intercept] = Line(densities, times);
  double worst = 0;
  for (size_t i = 0; i < times.size(); ++i) {
    const double fitted = intercept + slope * densities[i];
    worst = std::max(worst, std::abs(times[i] - fitted) / fitted);
  }
  emit({{"row", "E3"},
        {"name", "sparse time over density 5..50 %, largest distance from a line"},
        {"seconds", seconds_by_density},
        {"value", worst},
        {"lower_is_better", true},
        {"pass_mark", 0.15},
        {"aim", 0.05}});
}

void EmitE11(const Options& options, const std::function<void(Json)>& emit) {
  const SelectionPolicy policy;
  const PlannerSetting setting = {&BackendRegistry::Default(), &policy, QueryCpu(), {}, ""};
  Observer observer;
  AttentionPlanner planner(setting, AttentionOptions{}, &observer);
  AttentionSpec spec = SpecOf(Tokens(kLongGrid), kLongGrid);
  spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa, AttnBackend::kReference};
  const std::vector<AttentionSpec> specs = {spec};
  constexpr int kCalls = 1000000;
  const double seconds = MedianSeconds(
      [&] {
        for (int i = 0; i < kCalls; ++i) planner.Prepare(specs, i, kCalls);
      },
      options.pairs);
  emit({{"row", "E11"},
        {"name", "selection of a role at a step when nothing changed"},
        {"unit", "ns"},
        {"value", seconds / kCalls * 1e9},
        {"lower_is_better", true},
        {"pass_mark", 100},
        {"aim", 30}});
}

// No numeric test sees a cliff: weights that are denormal numbers are right, and a hundred times
// slower on some machines. Deviations take turns, so that a busy machine hits all alike.
void EmitE17(const Options& options, const std::function<void(Json)>& emit) {
  constexpr std::array<int, 4> kDeviations = {1, 4, 16, 64};
  const std::array<int64_t, 3> grid = kWanGrids.front();
  const Attention flash(AttnBackend::kFlashAttn, grid);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    std::array<std::vector<double>, kDeviations.size()> seconds;
    for (int turn = 0; turn <= 2 * options.pairs; ++turn) {
      for (size_t i = 0; i < kDeviations.size(); ++i) {
        AttentionInputs inputs = RandomInputs(Tokens(grid), dtype);
        inputs.query = inputs.query * kDeviations[i];
        const double time = SecondsOf([&] { flash(inputs); });
        if (turn > 0) seconds[i].push_back(time);  // the first turn warms up
      }
    }
    Json medians = Json::object();
    double best = INFINITY, worst = 0;
    for (size_t i = 0; i < kDeviations.size(); ++i) {
      std::sort(seconds[i].begin(), seconds[i].end());
      const double median = seconds[i][seconds[i].size() / 2];
      medians[std::to_string(kDeviations[i])] = median;
      best = std::min(best, median);
      worst = std::max(worst, median);
    }
    emit({{"row", "E17"},
          {"name", "FLASH_ATTN's rate over the scores' deviation, worst over best, " +
                       std::string(dtype == at::kFloat ? "float32, " : "bf16, ") +
                       Shape(Tokens(grid)) + ", " + KernelIdentity()},
          {"seconds", medians},
          {"value", best / worst},
          {"pass_mark", 0.90},
          {"aim", 0.97}});
  }
}

using Emitter = void (*)(const Options&, const std::function<void(Json)>&);
const std::vector<std::pair<std::string, Emitter>> kRows = {
    {"A0", EmitA0}, {"A4", EmitA4}, {"A5", EmitA5}, {"A6", EmitA6},   {"A6b", EmitA6b},
    {"E1", EmitE1}, {"E2", EmitE2}, {"E3", EmitE3}, {"E11", EmitE11}, {"E17", EmitE17}};

Options Parse(int argc, char** argv) {
  Options options;
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

void Run(const Options& options) {
  for (const auto& [row, emitter] : kRows) {
    if (!options.Wants(row)) continue;
    try {
      emitter(options, [](const Json& line) { std::cout << line.dump() << std::endl; });
    } catch (const Error& error) {
      if (error.code() != StatusCode::kFailedPrecondition) throw;
      std::cout << Json{{"row", row}, {"skipped", error.what()}}.dump() << std::endl;
    }
  }
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  denoised::KeepFreedMemory();
  const denoised::Options options = denoised::Parse(argc, argv);
  denoised::PinCpuIsa(options.cpu_isa);
  const c10::InferenceMode inference;
  denoised::SetIntraOpThreads(options.threads);
  denoised::Run(options);
}
