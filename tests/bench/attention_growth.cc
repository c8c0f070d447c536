// How costs grow: E1 (tokens), E2 (tokens at fixed top-k), E3 (density), E11 and H1 (selection),
// E17 (the scores' deviation).
#include <algorithm>
#include <array>
#include <cmath>

#include "backends/registry.h"
#include "runtime/attention/attention_planner.h"
#include "tests/bench/attention_calls.h"
#include "tests/bench/attention_checks.h"

namespace denoised {
namespace {

// Grids of whole 4 x 4 x 4 tiles, each twice the one before.
const std::vector<Axes> kDoublingGrids = {{4, 16, 24}, {8, 16, 24}, {8, 32, 24}, {16, 32, 24}};

void EmitE1(const BenchOptions& options, const Emit& emit) {
  Json rates = Json::object();
  double best = 0, worst = INFINITY, error = 0;
  for (const auto& grid : kDoublingGrids) {
    const AttentionInputs inputs = RandomInputs(Product(grid), AutoDType());
    const Attention flash(AttnBackend::kFlashAttn, BenchSpec(grid, AutoDType()));
    const double seconds = MedianSeconds([&] { flash(inputs); }, options.pairs);
    const double rate = AttentionMultiplyAdds(Product(grid)) / seconds;
    rates[std::to_string(Product(grid))] = rate / 1e9;
    best = std::max(best, rate);
    worst = std::min(worst, rate);
    error = std::max(error, ErrorToFloat64(flash(inputs), inputs));
  }
  emit({{"row", "E1"},
        {"error", error},
        {"error_limit", DenseErrorLimit(AutoDType())},
        {"name", "dense attention rate over N, worst over best"},
        {"giga_multiply_adds", rates},
        {"value", worst / best}});
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

// `row` has the largest error so far; a query of `sparse` should attend so many keys.
void AddError(const Attention& sparse, const AttentionInputs& inputs, double keys, Json* row) {
  const Json error = ErrorOf(sparse, sparse(inputs), inputs);
  if (row->empty() || error.at("error") > row->at("error")) row->update(error);
  Demand(AttendsKeys(sparse, inputs, keys), row);
}

void EmitE2(const BenchOptions& options, const Emit& emit) {
  Json row;
  std::vector<double> log_tokens, log_seconds;
  Json seconds_by_tokens = Json::object();
  for (const auto& grid : kDoublingGrids) {
    const AttentionInputs inputs = RandomInputs(Product(grid), AutoDType());
    const Attention sparse(AttnBackend::kVideoSparseAttn, BenchSpec(grid, AutoDType()),
                           R"({"top_k": 8})");
    const double seconds = MedianSeconds([&] { sparse(inputs); }, options.pairs);
    seconds_by_tokens[std::to_string(Product(grid))] = seconds;
    log_tokens.push_back(std::log(static_cast<double>(Product(grid))));
    log_seconds.push_back(std::log(seconds));
    AddError(sparse, inputs, 8 * 64, &row);
  }
  row.update({{"row", "E2"},
              {"name", "sparse time over N at top_k 8, exponent"},
              {"seconds", seconds_by_tokens},
              {"value", Line(log_tokens, log_seconds).first}});
  emit(row);
}

void EmitE3(const BenchOptions& options, const Emit& emit) {
  const Axes grid = {8, 32, 24};
  const AttentionInputs inputs = RandomInputs(Product(grid), AutoDType());
  std::vector<double> densities = {0.05, 0.10, 0.20, 0.30, 0.40, 0.50}, times;
  Json seconds_by_density = Json::object(), row;
  for (const double density : densities) {
    const Json parameters = {{"sparsity", 1 - density}};
    const Attention sparse(AttnBackend::kVideoSparseAttn, BenchSpec(grid, AutoDType()),
                           parameters.dump());
    times.push_back(MedianSeconds([&] { sparse(inputs); }, options.pairs));
    seconds_by_density[std::to_string(density).substr(0, 4)] = times.back();
    AddError(sparse, inputs, density * static_cast<double>(Product(grid)), &row);
  }
  const auto [slope, intercept] = Line(densities, times);
  double worst = 0;
  for (size_t i = 0; i < times.size(); ++i) {
    const double fitted = intercept + slope * densities[i];
    worst = std::max(worst, std::abs(times[i] - fitted) / fitted);
  }
  row.update({{"row", "E3"},
              {"name", "sparse time over density 5..50 %, largest distance from a line"},
              {"seconds", seconds_by_density},
              {"value", worst}});
  emit(row);
}

AttentionSpec SelectableSpec() {
  AttentionSpec spec = BenchSpec({4, 30, 52}, AutoDType());
  spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa, AttnBackend::kReference};
  return spec;
}

void EmitE11(const BenchOptions& options, const Emit& emit) {
  const SelectionPolicy policy;
  const PlannerSetting setting = {&BackendRegistry::Default(), &policy, QueryCpu()};
  Observer observer;
  AttentionPlanner planner(setting, {}, &observer);
  const std::vector<AttentionSpec> specs = {SelectableSpec()};
  constexpr int kCalls = 1000000;
  const double seconds = MedianSeconds(
      [&] {
        for (int i = 0; i < kCalls; ++i) planner.Prepare(specs, i, kCalls);
      },
      options.pairs);
  emit({{"row", "E11"},
        {"name", "selection of a role at a step when nothing changed"},
        {"unit", "ns"},
        {"value", seconds / kCalls * 1e9}});
}

// A thousand leases of all kinds; every eighth is for the work below and splits its layers.
void ForceAThousand(SelectionPolicy* policy, int64_t layers) {
  for (int64_t i = 0; i < 1000; ++i) {
    LeaseRequest request{i % 2 == 0 ? AttnBackend::kTorchSdpa : AttnBackend::kFlashAttn};
    LeaseScope& scope = request.scope;
    if (i % 8 == 0) scope.where.layers = Interval{i % layers, i % layers};
    if (i % 8 == 1) scope.job = "job-" + std::to_string(i);
    if (i % 8 == 2) scope.tenant = "tenant-" + std::to_string(i);
    if (i % 8 == 3) scope.model = "model-" + std::to_string(i);
    if (i % 8 == 4) scope.where.role = AttentionRole::kCross;
    if (i % 8 == 5) scope.where.steps = Interval{2000000 + i, 3000000};
    if (i % 8 == 6) scope.where.sigma = SigmaRange{0.1, 0.2};
    if (i % 8 == 7) scope.share = 1e-9;
    policy->Force(std::move(request));
  }
}

void EmitH1(const BenchOptions& options, const Emit& emit) {
  constexpr int64_t kLayers = 30;
  constexpr int kCalls = 100000, kChanges = 200;
  SelectionPolicy policy;
  ForceAThousand(&policy, kLayers);
  PlannerSetting setting = {&BackendRegistry::Default(), &policy, QueryCpu(), "model"};
  setting.layers = {kLayers, kLayers, 1, 1};
  Observer observer;
  PlannerSubject subject;
  subject.id = "job";
  AttentionPlanner planner(setting, subject, &observer);
  const std::vector<AttentionSpec> specs = {SelectableSpec()};
  const double same = MedianSeconds(
      [&] {
        for (int i = 0; i < kCalls; ++i) planner.Prepare(specs, i, kCalls, 0.9);
      },
      options.pairs);
  const double anew = MedianSeconds(
      [&] {
        for (int i = 0; i < kChanges; ++i) {
          planner.SetSubject(subject);
          planner.Prepare(specs, i, kCalls, 0.9);
        }
      },
      options.pairs);
  emit({{"row", "H1"},
        {"name", "selection of a layer at a step when nothing changed, under 1,000 leases"},
        {"unit", "ns"},
        {"slots", planner.Prepare(specs, 0, kCalls, 0.9)[0].slots.size()},
        {"role_anew_us", anew / kChanges * 1e6},
        {"value", same / kCalls / kLayers * 1e9}});
}

// No numeric test sees a cliff: weights that are denormal numbers are right, and a hundred times
// slower on some machines. Deviations take turns, so that a busy machine hits all alike.
void EmitE17(const BenchOptions& options, const Emit& emit) {
  constexpr std::array<int, 4> kDeviations = {1, 4, 16, 64};
  const Axes grid = {1, 30, 52};
  std::vector<at::ScalarType> dtypes = {at::kFloat};
  if (AutoDType() != at::kFloat) dtypes.push_back(AutoDType());
  for (const at::ScalarType dtype : dtypes) {
    const Attention flash(AttnBackend::kFlashAttn, BenchSpec(grid, dtype));
    std::array<std::vector<double>, kDeviations.size()> seconds;
    std::array<at::Tensor, kDeviations.size()> outputs;
    std::array<double, kDeviations.size()> errors = {};
    const auto spread = [&](int deviation) {
      AttentionInputs inputs = RandomInputs(Product(grid), dtype);
      inputs.query = inputs.query * deviation;
      return inputs;
    };
    Settle();
    for (int turn = 0; turn <= 2 * options.pairs; ++turn) {
      for (size_t i = 0; i < kDeviations.size(); ++i) {
        const AttentionInputs inputs = spread(kDeviations[i]);
        at::Tensor out;
        const double time = SecondsOf([&] { out = flash(inputs); });
        if (turn > 0) seconds[i].push_back(time);  // the first turn warms up
        outputs[i] = out;
      }
    }
    Json medians = Json::object();
    double best = INFINITY, worst = 0;
    for (size_t i = 0; i < kDeviations.size(); ++i) {
      errors[i] = ErrorToFloat64(outputs[i], spread(kDeviations[i]));
      std::sort(seconds[i].begin(), seconds[i].end());
      const double median = seconds[i][seconds[i].size() / 2];
      medians[std::to_string(kDeviations[i])] = median;
      best = std::min(best, median);
      worst = std::max(worst, median);
    }
    emit({{"row", "E17"},
          {"name", "FLASH_ATTN's rate over the scores' deviation, worst over best, " +
                       ShapeName(Product(grid), dtype) + ", " + KernelIdentity()},
          {"seconds", medians},
          {"errors", errors},
          {"error", *std::max_element(errors.begin(), errors.end())},
          {"error_limit", DenseErrorLimit(dtype)},
          {"value", best / worst}});
  }
}

}  // namespace

Rows GrowthRows() {
  return {{"E1", EmitE1},   {"E2", EmitE2},   {"E3", EmitE3},
          {"E11", EmitE11}, {"E17", EmitE17}, {"H1", EmitH1}};
}

}  // namespace denoised
