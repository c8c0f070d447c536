// How costs grow: E10 (label sets of a metric), E12 (shapes that a plan cache has seen).
#include "tests/bench/control_growth.h"

#include <prometheus/registry.h>

#include <algorithm>
#include <memory>

#include "backends/error.h"
#include "backends/registry.h"
#include "runtime/attention/plan_cache.h"
#include "server/metrics.h"
#include "server/metrics_series.h"
#include "tests/allocated.h"
#include "tests/median.h"

namespace denoised {
namespace {

// As a number that may be divided.
double Allocated() { return static_cast<double>(AllocatedBytes()); }

// ---- E10 ---------------------------------------------------------------------------------------

constexpr int kFewSets = 100, kManySets = 50000;

std::vector<std::string> Models(int count) {
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.push_back("model-" + std::to_string(100000 + i));
  return names;
}

// The server's own metrics with a histogram a model.
struct Sets {
  explicit Sets(int count) : models(Models(count)) {
    const double before = Allocated();
    for (const std::string& model : models) metrics.OnStep(model, 0.05);
    bytes = (Allocated() - before) / count;
    // Their names lie alike for the caller however many others there are.
    const size_t stride = std::max<size_t>(1, models.size() / kFewSets);
    for (size_t i = 0; i < models.size(); i += stride) observed.push_back(models[i]);
  }
  // Seconds of one observation, of a hundred series in turns.
  double Observe() {
    constexpr int kRounds = 2000;
    const auto observe = [&] {
      for (int i = 0; i < kRounds; ++i) {
        for (const std::string& model : observed) metrics.OnStep(model, 0.05);
      }
    };
    return SecondsOf(observe) / kRounds / static_cast<double>(observed.size());
  }
  // Seconds of one page, taken piece by piece as the HTTP server does; of small ones again and
  // again, since what a page says without sets is subtracted.
  double Scrape() {
    const int repeats = models.size() < kManySets ? 200 : 1;
    const auto scrape = [&] {
      for (int i = 0; i < repeats; ++i) {
        const auto page = metrics.Page();
        std::string piece;
        while (page(&piece)) piece.clear();
      }
    };
    return SecondsOf(scrape) / repeats;
  }

  const std::vector<std::string> models;
  std::vector<std::string> observed;
  Metrics metrics{"bench"};
  double bytes = 0;  // of memory, each
};

struct FewAndMany {
  double few, many;
};

// Medians of samples in turns: what slows the machine down slows both.
template <typename Sample>
FewAndMany InTurns(const BenchOptions& options, const Sample& sample) {
  std::vector<double> few, many;
  Settle();
  sample();
  for (int i = 0; i < options.pairs; ++i) {
    const FewAndMany seconds = sample();
    few.push_back(seconds.few);
    many.push_back(seconds.many);
  }
  return {Median(few), Median(many)};
}

// Of a histogram of prometheus-cpp by itself, with the same labels and buckets.
double BytesOfPeer(int count) {
  const std::vector<std::string> models = Models(count);
  prometheus::Registry registry;
  auto& family = prometheus::BuildHistogram().Name("step_seconds").Register(registry);
  const double before = Allocated();
  for (const std::string& model : models) {
    family.Add({{"model", model}}, SecondsBuckets()).Observe(0.05);
  }
  return (Allocated() - before) / count;
}

// Of a set, in seconds; what the page says without them is no cost of theirs.
FewAndMany SecondsOfScrape(const BenchOptions& options) {
  Sets none(1), few(kFewSets), many(kManySets);
  return InTurns(options, [&]() -> FewAndMany {
    const double rest = none.Scrape();
    return {(few.Scrape() - rest) / kFewSets, (many.Scrape() - rest) / kManySets};
  });
}

void EmitE10(const BenchOptions& options, const Emit& emit) {
  emit({{"row", "E10"},
        {"name", "scrape, us a label set, 50,000 label sets"},
        {"value", SecondsOfScrape(options).many * 1e6}});
}

void EmitE10f(const BenchOptions& options, const Emit& emit) {
  const auto [few, many] = SecondsOfScrape(options);
  emit({{"row", "E10f"},
        {"name", "scrape of a label set, 50,000 label sets over 100"},
        {"value", many / few},
        {"us", {few * 1e6, many * 1e6}}});
}

void EmitE10m(const BenchOptions&, const Emit& emit) {
  const double ours = Sets(kManySets).bytes, peer = BytesOfPeer(kManySets);
  emit({{"row", "E10m"},
        {"name", "memory of a label set over prometheus-cpp's, 50,000 label sets"},
        {"value", ours / peer},
        {"bytes", ours},
        {"peer_bytes", peer}});
}

void EmitE10o(const BenchOptions& options, const Emit& emit) {
  Sets few_sets(kFewSets), many_sets(kManySets);
  const auto [few, many] = InTurns(options, [&]() -> FewAndMany {
    return {few_sets.Observe(), many_sets.Observe()};
  });
  emit({{"row", "E10o"},
        {"name", "an observation, 50,000 label sets over 100"},
        {"value", many / few},
        {"ns", {few * 1e9, many * 1e9}}});
}

// ---- E12 ---------------------------------------------------------------------------------------

constexpr int64_t kShapes = 1000;

AttentionSpec ShapeOf(int64_t number) {
  AttentionSpec spec;
  spec.role = AttentionRole::kSelf;
  spec.num_heads = 12;
  spec.head_size = 128;
  spec.grid = {1 + number % 10, 8 + number / 10 % 10, 8 + number / 100};
  spec.q_len = spec.kv_len = spec.grid[0] * spec.grid[1] * spec.grid[2];
  return spec;
}

std::shared_ptr<const AttentionMetadata> PlanOf(PlanCache* cache, const AttentionSpec& spec) {
  const auto& backend = *BackendRegistry::Default().Find(AttnBackend::kVideoSparseAttn)->backend;
  return cache->Find(backend, spec, "")->Make(0, 20);
}

// As four jobs of different shapes would ask, in turns.
double SecondsOfHit(PlanCache* cache, const BenchOptions& options) {
  constexpr size_t kHits = 100000, kJobs = 4;
  std::vector<AttentionSpec> specs;
  std::vector<std::shared_ptr<const AttentionMetadata>> held;
  for (size_t i = 0; i < kJobs; ++i) {
    specs.push_back(ShapeOf(static_cast<int64_t>(i)));
    held.push_back(PlanOf(cache, specs.back()));
  }
  const auto work = [&] {
    for (size_t i = 0; i < kHits; ++i) {
      if (PlanOf(cache, specs[i % kJobs]) == held[i % kJobs]) continue;
      throw Error(StatusCode::kInternal, "E12: a hit gave other metadata");
    }
  };
  return MedianSeconds(work, options.pairs) / kHits;
}

void EmitE12(const BenchOptions& options, const Emit& emit) {
  PlanCache cache;
  const double first = SecondsOfHit(&cache, options);
  for (int64_t i = 0; i < kShapes; ++i) PlanOf(&cache, ShapeOf(i));
  emit({{"row", "E12"},
        {"name", "metadata of a shape that is known, 1,000 shapes seen, us"},
        {"value", SecondsOfHit(&cache, options) * 1e6},
        {"first_us", first * 1e6}});
}

void EmitE12m(const BenchOptions&, const Emit& emit) {
  PlanCache cache;
  for (int64_t i = 0; i < kShapes / 10; ++i) PlanOf(&cache, ShapeOf(i));
  const double warm = Allocated();
  for (int64_t i = kShapes / 10; i < kShapes; ++i) PlanOf(&cache, ShapeOf(i));
  // The last shapes again, so that it keeps the same ones.
  for (int64_t i = 0; i < kShapes / 10; ++i) PlanOf(&cache, ShapeOf(i));
  emit({{"row", "E12m"},
        {"name", "growth of the plan cache from shape 100 to 1,000, MiB"},
        {"value", (Allocated() - warm) / (1 << 20)}});
}

}  // namespace

Rows ControlGrowthRows() {
  return {{"E10", EmitE10},   {"E10f", EmitE10f}, {"E10m", EmitE10m},
          {"E10o", EmitE10o}, {"E12", EmitE12},   {"E12m", EmitE12m}};
}

}  // namespace denoised
